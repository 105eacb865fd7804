"""One reader of room.log for all consumers of a process: each record is fetched and decoded once.

Each consumer has a reader of its own here, with places of its own. Whoever waits for records takes them for
everybody. A consumer that is far behind keeps nobody waiting: of what it has not taken only the newest record of each
partition is kept, which shows it the hole that PostgreSQL fills.

Spec: none; DESIGN.md section 4.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from tessera.bus.protocol import BusUnavailable, LogEnd, RecordBus, RecordReader
from tessera.records import LogRecord

WAITING_LIMIT = 2_000  # records that wait for one consumer


class SharedRecords:
    """`tessera.bus.RecordBus` for the consumers of one process."""

    def __init__(self, bus: RecordBus) -> None:
        self._bus = bus
        self._reader: RecordReader | None = None
        self._lasts: dict[int, int] = {}  # the position up to which the reader has given each partition
        self._sharers: dict[SharedReader, None] = {}
        self._changing = asyncio.Lock()
        self._is_taking = False

    async def announce(self, partition: int, records: Sequence[LogRecord]) -> None:
        """Append records in order."""
        await self._bus.announce(partition, records)

    async def find_ends(self, partitions: Sequence[int]) -> dict[int, LogEnd]:
        """The newest record of each of these partitions that has any."""
        return await self._bus.find_ends(partitions)

    async def open_reader(self) -> "SharedReader":
        """A consumer that has no partition yet.

        Raises:
            BusUnavailable: the topic cannot be read now.
        """
        async with self._changing:
            if self._reader is None:
                self._reader = await self._bus.open_reader()
            sharer = SharedReader(self)
            self._sharers[sharer] = None
            return sharer

    async def begin(self, partition: int, after_position: int) -> None:
        """Read a partition above a position, or go back to it."""
        async with self._changing:
            last = self._lasts.get(partition)
            if self._reader is not None and (last is None or after_position < last):
                await self._reader.assign(partition, after_position)
                self._lasts[partition] = after_position

    async def end(self, partition: int) -> None:
        """Read a partition no more, unless another consumer wants it."""
        async with self._changing:
            if not any(sharer.wants(partition) for sharer in self._sharers):
                self._lasts.pop(partition, None)
                if self._reader is not None:
                    await self._reader.revoke(partition)

    async def fill(self, limit: int) -> bool:
        """Take records for everybody; False if somebody else is doing it.

        Raises:
            BusUnavailable: the topic cannot be read now.
        """
        if self._is_taking:
            return False
        if self._reader is None:
            raise BusUnavailable("the reader is closed")
        self._is_taking = True
        try:
            by_partition: dict[int, list[LogRecord]] = {}
            for record in await self._reader.take(limit):
                by_partition.setdefault(record.partition, []).append(record)
            for partition, records in by_partition.items():
                if partition in self._lasts:
                    self._lasts[partition] = records[-1].position
            for sharer in self._sharers:
                sharer.offer(by_partition)
        finally:
            self._is_taking = False
            for sharer in self._sharers:
                sharer.wake()  # one of them takes next
        return True

    async def leave(self, sharer: "SharedReader", partitions: Iterable[int]) -> None:
        """A consumer is closed; with the last one the reader is, too."""
        self._sharers.pop(sharer, None)
        for partition in partitions:
            await self.end(partition)
        async with self._changing:
            if not self._sharers and self._reader is not None:
                reader, self._reader = self._reader, None
                self._lasts.clear()
                await reader.close()


class SharedReader:
    """`tessera.bus.RecordReader` of one consumer."""

    def __init__(self, shared: SharedRecords) -> None:
        self._shared = shared
        self._positions: dict[int, int] = {}
        self._waiting: deque[LogRecord] = deque()
        self._wakeup = asyncio.Event()
        self._closed = False

    def wants(self, partition: int) -> bool:
        """Whether it reads a partition."""
        return partition in self._positions

    async def assign(self, partition: int, after_position: int) -> None:
        """Read a partition's records above a position.

        Raises:
            BusUnavailable: the topic cannot be read now.
        """
        self._drop(partition)
        self._positions[partition] = after_position
        try:
            await self._shared.begin(partition, after_position)
        except BaseException:
            self._positions.pop(partition, None)
            raise

    async def revoke(self, partition: int) -> None:
        """Give a partition up."""
        if self._positions.pop(partition, None) is not None:
            self._drop(partition)
            await self._shared.end(partition)

    async def take(self, limit: int) -> list[LogRecord]:
        """What is ready, each partition in ascending positions; waits for the first.

        Raises:
            BusUnavailable: the topic cannot be read now, or the reader is closed.
        """
        while not self._waiting:
            if self._closed:
                raise BusUnavailable("the reader is closed")
            self._wakeup.clear()
            if not await self._shared.fill(limit) and not self._waiting:
                await self._wakeup.wait()
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    async def close(self) -> None:
        """End a waiting take and leave the bus."""
        if self._closed:
            return
        self._closed = True
        self._wakeup.set()
        partitions, self._positions = list(self._positions), {}
        await self._shared.leave(self, partitions)

    def offer(self, by_partition: dict[int, list[LogRecord]]) -> None:
        """Records that came, of any partition."""
        for partition, records in by_partition.items():
            last = self._positions.get(partition)
            if last is None or records[-1].position <= last:
                continue
            self._waiting += records if records[0].position > last else [one for one in records if one.position > last]
            self._positions[partition] = records[-1].position
        if len(self._waiting) > WAITING_LIMIT:
            newest = {record.partition: record for record in self._waiting}
            self._waiting = deque(newest.values())

    def wake(self) -> None:
        """Records may be there, or nobody takes them now."""
        self._wakeup.set()

    def _drop(self, partition: int) -> None:
        self._waiting = deque(record for record in self._waiting if record.partition != partition)
