"""The gateway's ways to call other services."""

from dataclasses import dataclass

from tessera.config import Settings
from tessera.http.address_guard import AddressGuard
from tessera.http.json_calls import JsonCaller


@dataclass(frozen=True, slots=True)
class OutgoingCalls:
    """Close them at the end.

    Attributes:
        guarded: for addresses that users name, which must not lie in this server's own network.
        trusted: for those that the operator named.
    """

    guarded: JsonCaller
    trusted: JsonCaller

    @classmethod
    def of(cls, settings: Settings) -> "OutgoingCalls":
        """With the operator's bounds on addresses."""
        guard = AddressGuard(settings.ip_range_blocklist, settings.ip_range_allowlist)
        return cls(JsonCaller(guard), JsonCaller(None))

    async def close(self) -> None:
        """Close all connections."""
        await self.guarded.close()
        await self.trusted.close()
