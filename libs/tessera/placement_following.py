"""Following the placement of partitions, so that no process reads where one lay before it was moved.

Spec: none; DESIGN.md section 2, invariant 8; docs/adr/0003-moving-partitions.md.
"""

import asyncio

import structlog

from tessera.clock import Clock
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.partition_moves import list_moving
from tessera.storage.placement import PlacementMismatch, get_placement
from tessera.storage.shards import MOVING_TRUST_SECONDS, TRUST_SECONDS, RoomShards

log = structlog.get_logger(__name__)

LOOK_SECONDS = TRUST_SECONDS / 5
MOVING_LOOK_SECONDS = MOVING_TRUST_SECONDS / 5  # while anything is being moved


class PlacementFollower:
    """Keeps the shards of this process as the account store has them, and looks each `look_seconds`."""

    def __init__(
        self, accounts: Database, shards: RoomShards, clock: Clock, *, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._accounts = accounts
        self._shards = shards
        self._clock = clock
        self._look_seconds = look_seconds
        self._is_in_trouble = False
        self.has_looked = asyncio.Event()
        shards.follow(clock)

    async def run(self) -> None:
        """Run for ever."""
        while True:
            try:
                async with asyncio.timeout(TRUST_SECONDS):
                    await self.look()
            except Exception as error:  # whatever it was: rooms are not read until it is over
                known = isinstance(error, DatabaseUnavailable | PlacementMismatch | OSError | TimeoutError)
                if not self._is_in_trouble:
                    log.warning("placement not read", error=str(error) or type(error).__name__, exc_info=not known)
                self._is_in_trouble = True
            else:
                self._is_in_trouble = False
                self.has_looked.set()
            await self._clock.sleep(MOVING_LOOK_SECONDS if self._shards.moving else self._look_seconds)

    async def look(self) -> None:
        """Read the placement once.

        Raises:
            DatabaseUnavailable, PlacementMismatch
        """
        shards, read_at = self._shards, self._clock.monotonic()
        async with self._accounts.reading() as tx:
            moving = await list_moving(tx)  # first: what ends in between is held for moving a little longer
            placement = await get_placement(tx, shards.partitions, shards.names)
        shards.replace_placement(placement, moving, read_at=read_at)
