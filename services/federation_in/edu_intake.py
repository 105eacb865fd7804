"""Puts together what takes in EDUs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matrixcore.identifiers import ServerName
from services.federation_in.dependencies import FederationInDeps
from services.federation_in.device_resync import DeviceResync
from services.federation_in.edus import PassingEdus
from services.federation_in.stored_edus import StoredEdus
from tessera.service import Background


@dataclass(frozen=True, slots=True)
class EduIntake:
    """Where EDUs take effect: `transactions.EduReceiver`."""

    passing: PassingEdus
    stored: StoredEdus
    resync: DeviceResync

    @classmethod
    def of(cls, deps: FederationInDeps) -> "EduIntake":
        """With what federation_in has."""
        passing = PassingEdus(
            accounts=deps.accounts,
            shards=deps.shards,
            fanout=deps.fanout,
            commands=deps.commands,
            clock=deps.clock,
            ids=deps.ids,
            server_name=deps.server_name,
            presence_enabled=deps.settings.presence.enabled,
        )
        stored = StoredEdus(deps.accounts, deps.shards, deps.fanout, deps.clock, deps.server_name)
        resync = DeviceResync(
            deps.accounts, deps.shards, deps.federation.client, deps.fanout, deps.clock, deps.server_name
        )
        return cls(passing, stored, resync)

    @property
    def background(self) -> tuple[Background, ...]:
        """What runs beside it."""
        return self.passing.run, self.stored.run, self.resync.run

    async def receive_edus(self, origin: ServerName, edus: Sequence[Mapping[str, Any]]) -> None:
        """Those that are not stored."""
        await self.passing.receive(origin, edus)

    def wake(self) -> None:
        """Others have been stored."""
        self.stored.wake()
