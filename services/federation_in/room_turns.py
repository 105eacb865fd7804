"""Rooms that are to be looked after: those that something wakes and those that a sweep finds, some side by side.

Spec: none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from matrixcore.identifiers import RoomId
from tessera.clock import Clock
from tessera.storage.database import DatabaseUnavailable, Transaction
from tessera.storage.partitions import PartitionMoved
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

MAX_ROOMS = 16  # at once
MAX_WOKEN = 10_000  # rooms that wait for their turn; a sweep finds what is beyond
_PASSING = (DatabaseUnavailable, PartitionMoved, OSError, TimeoutError)


class RoomTurns:
    """Each room is looked after by one task at a time, and again if it was woken meanwhile.

    Args:
        what: what is done for a room, for the log.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._woken: dict[RoomId, None] = {}
        self._busy: set[RoomId] = set()
        self._news = asyncio.Event()

    def wake(self, room_id: RoomId) -> None:
        """There may be something to be done for a room."""
        if len(self._woken) < MAX_WOKEN:
            self._woken[room_id] = None
            self._news.set()

    async def run(self, look_after: Callable[[RoomId], Awaitable[None]]) -> None:
        """Run for ever: look after the rooms that were woken."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._news.wait()
                self._news.clear()
                for room_id in [one for one in self._woken if one not in self._busy][: MAX_ROOMS - len(self._busy)]:
                    del self._woken[room_id]
                    self._busy.add(room_id)
                    tasks.create_task(self._take_turn(room_id, look_after))

    async def _take_turn(self, room_id: RoomId, look_after: Callable[[RoomId], Awaitable[None]]) -> None:
        try:
            await look_after(room_id)
        except _PASSING as error:
            log.warning("room put off", work=self._what, room_id=room_id, error=str(error) or type(error).__name__)
        except Exception:  # whatever an odd room does to this, others go on
            log.exception("room failed", work=self._what, room_id=room_id)
        finally:
            self._busy.discard(room_id)
            self._news.set()

    async def sweep(
        self,
        shards: RoomShards,
        clock: Clock,
        seconds: float,
        find: Callable[[Transaction], Awaitable[Sequence[RoomId]]],
    ) -> None:
        """Run for ever: wake the rooms that are found in each shard."""
        while True:
            await clock.sleep(seconds)
            for name, database in shards.databases.items():
                try:
                    async with database.reading() as tx:
                        for room_id in await find(tx):
                            self.wake(room_id)
                except _PASSING as error:
                    log.warning(
                        "shard not swept", work=self._what, shard=name, error=str(error) or type(error).__name__
                    )
