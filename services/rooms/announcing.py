"""Announcing records to room.log: a partition's in order, from `announced` + 1; partitions side by side."""

import asyncio
from collections import deque

import structlog

from tessera import tracing
from tessera.bus import BusUnavailable, RecordBus
from tessera.clock import Clock
from tessera.records import LogRecord
from tessera.storage.database import Database
from tessera.storage.records import list_records

log = structlog.get_logger(__name__)

PENDING_LIMIT = 1_000  # records of a partition kept in memory; beyond, they are read from PostgreSQL
SLICE = 500
RETRY_SECONDS = 0.5
PAUSE_SECONDS = 0.03  # nobody waits for room.log: what is committed so soon after goes with the next request


class Pump:
    """Announces what was committed, in order, and stops a partition at its first failure until that passes."""

    def __init__(self, database: Database, bus: RecordBus, clock: Clock) -> None:
        self._database = database
        self._bus = bus
        self._clock = clock
        self._announced: dict[int, int] = {}
        self._heads: dict[int, int] = {}
        self._pending: dict[int, deque[LogRecord]] = {}
        self._dirty: dict[int, None] = {}
        self._busy: set[int] = set()
        self._wakeup = asyncio.Event()

    def announced(self, partition: int) -> int:
        """The last position that room.log has."""
        return self._announced[partition]

    def add_partition(self, partition: int, announced: int, head: int) -> None:
        """Begin with a partition; what lies between the two positions is read from PostgreSQL."""
        self._announced[partition] = announced
        self._heads[partition] = head
        self._pending[partition] = deque()
        if announced < head:
            self._wake(partition)

    def drop_partition(self, partition: int) -> None:
        """The partition is somebody else's."""
        for kept in (self._announced, self._heads, self._pending, self._dirty):
            kept.pop(partition, None)

    def offer(self, partition: int, records: list[LogRecord]) -> None:
        """Announce records that have just been committed."""
        pending = self._pending.get(partition)
        if pending is None or not records:
            return
        if len(pending) + len(records) <= PENDING_LIMIT:
            pending.extend(records)
        self._heads[partition] = records[-1].position
        self._wake(partition)

    def unannounced(self, partition: int) -> int:
        """How many committed records room.log does not have yet."""
        return self._heads.get(partition, 0) - self._announced.get(partition, 0)

    def is_settled(self) -> bool:
        """Whether everything is announced."""
        return not self._dirty

    async def run(self) -> None:
        """Run for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._wakeup.wait()
                self._wakeup.clear()
                # A partition whose broker is away keeps no other one waiting.
                for partition in self._dirty.keys() - self._busy:
                    self._busy.add(partition)
                    tasks.create_task(self._try(partition))
                await self._clock.sleep(PAUSE_SECONDS)

    async def _try(self, partition: int) -> None:
        try:
            await self._announce(partition)
        except Exception as error:  # whatever it is: the next round begins at the same place
            log.warning("records not announced", partition=partition, error=repr(error))
            await self._clock.sleep(RETRY_SECONDS)
        finally:
            self._busy.discard(partition)
            if partition in self._dirty:
                self._wakeup.set()

    async def _announce(self, partition: int) -> None:
        while partition in self._announced and self._announced[partition] < self._heads[partition]:
            records = await self._next_records(partition)
            with tracing.announcing(records):
                await self._bus.announce(partition, records)
            if partition not in self._announced:
                return
            last = records[-1].position
            self._announced[partition] = last
            pending = self._pending[partition]
            while pending and pending[0].position <= last:
                pending.popleft()
        self._dirty.pop(partition, None)

    async def _next_records(self, partition: int) -> list[LogRecord]:
        first = self._announced[partition] + 1
        pending = self._pending[partition]
        if pending and pending[0].position == first:
            records = list(pending)
            # An overflow left a hole: what comes after it is read from PostgreSQL in the next round.
            for index, record in enumerate(records):
                if record.position != first + index:
                    return records[:index]
            return records
        async with self._database.reading() as tx:
            records = await list_records(tx, partition, first - 1, self._heads[partition], SLICE)
        if not records:
            raise BusUnavailable("committed records cannot be read")
        return records

    def _wake(self, partition: int) -> None:
        self._dirty[partition] = None
        self._wakeup.set()
