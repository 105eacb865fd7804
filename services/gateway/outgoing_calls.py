"""The gateway's ways to call other services."""

from dataclasses import dataclass

from tessera.appservice_client import AppServiceClient
from tessera.clock import Clock
from tessera.config import Settings
from tessera.http.address_guard import AddressGuard
from tessera.http.json_calls import JsonCaller

APPSERVICE_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class OutgoingCalls:
    """Close them at the end.

    Attributes:
        guarded: for addresses that users name, which must not lie in this server's own network.
        trusted: for those that the operator named.
        appservices: for application services.
    """

    guarded: JsonCaller
    trusted: JsonCaller
    appservices: AppServiceClient

    @classmethod
    def of(cls, settings: Settings, clock: Clock) -> "OutgoingCalls":
        """With the operator's bounds on addresses."""
        guard = AddressGuard(settings.ip_range_blocklist, settings.ip_range_allowlist)
        return cls(JsonCaller(guard), JsonCaller(None), AppServiceClient(clock, connections=APPSERVICE_CONNECTIONS))

    async def close(self) -> None:
        """Close all connections."""
        await self.guarded.close()
        await self.trusted.close()
        await self.appservices.close()
