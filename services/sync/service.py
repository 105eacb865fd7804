"""The sync service as the composition root sees it: routes for the application, and work in the background."""

import asyncio

from starlette.routing import Route

from services.sync.presence_keeping import PresenceKeeper
from services.sync.routes import ForgetDevice, SyncRoutes
from services.sync.sliding.routes import SlidingRoutes
from services.sync.sliding.sliding_sync import SlidingSync
from services.sync.sync_instance import SyncInstance
from tessera.clock import Clock
from tessera.fanout import Fanout
from tessera.ids import IdSource
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

CONNECTION_NAME_LENGTH = 12


class SyncService:
    """GET /sync, GET /keys/changes and sliding sync.

    Its routes expect `state.authenticator` on the application.

    Args:
        instance: a number of 32 bits that no other process has, at random.
        ids: for the names of sliding sync's connections.
        forget_device: `TokenAuthenticator.forget_device`, so that a logout ends waiting requests at once.
    """

    def __init__(
        self,
        accounts: Database,
        shards: RoomShards,
        fanout: Fanout,
        clock: Clock,
        *,
        instance: int,
        ids: IdSource,
        presence_enabled: bool = True,
        forget_device: ForgetDevice | None = None,
    ) -> None:
        self.instance = SyncInstance(accounts, shards, fanout, clock, instance, presence_enabled=presence_enabled)
        self._presence = PresenceKeeper(accounts, fanout, clock, enabled=presence_enabled)
        self._routes = SyncRoutes(self.instance, accounts, self._presence, forget_device=forget_device)
        self.sliding = SlidingSync(self.instance, lambda: ids.letters(CONNECTION_NAME_LENGTH))
        self._sliding_routes = SlidingRoutes(self.sliding, self._presence, forget_device=forget_device)

    @property
    def routes(self) -> list[Route]:
        """First in the application's route table: they are asked most."""
        return [*self._routes.routes, *self._sliding_routes.routes]

    async def start(self) -> None:
        """Before the first request."""
        await self.instance.start()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.instance.run())
            tasks.create_task(self._presence.run())

    async def stop(self) -> None:
        """Hear nothing more, and let waiting requests go."""
        await self.instance.stop()
