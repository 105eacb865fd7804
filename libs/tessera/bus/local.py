"""The bus of one process: bounded queues. It needs no durability: the truth and the inbox are in PostgreSQL."""

import asyncio
from collections import deque
from collections.abc import Collection, Sequence

from tessera.bus.admission import RETRY_AFTER_MS, undone_limit
from tessera.bus.protocol import BusBusy, BusUnavailable, Delivered, LogEnd
from tessera.commands import Command
from tessera.records import LogRecord

RETAINED_RECORDS = 1_000  # of a partition; a slower consumer reads PostgreSQL


class LocalCommandBus:
    """room.commands as one queue for each partition."""

    def __init__(self, topic_id: str) -> None:
        self._topic_id = topic_id
        self._queues: dict[int, deque[Delivered]] = {}
        self._next_offset: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._readers: dict[int, LocalCommandReader] = {}

    @property
    def topic_id(self) -> str:
        """New for every process: offsets of the last one mean nothing."""
        return self._topic_id

    async def send(self, command: Command) -> None:
        """Hand a command to its partition; BusBusy if too many lie undone there (`undone_limit`)."""
        partition = command.partition
        offset = self._next_offset.get(partition, 0)
        limit = undone_limit(command)
        if limit is not None and offset - self._done.get(partition, -1) > limit:
            raise BusBusy(RETRY_AFTER_MS)
        self._next_offset[partition] = offset + 1
        self._queues.setdefault(partition, deque()).append(Delivered(partition, offset, command))
        if (reader := self._readers.get(partition)) is not None:
            reader.wake(partition)

    async def open_reader(self) -> "LocalCommandReader":
        """A reader that has no partition yet."""
        return LocalCommandReader(self)

    def _attach(self, partition: int, reader: "LocalCommandReader", done_offset: int | None) -> deque[Delivered]:
        self._readers[partition] = reader
        queue = self._queues.setdefault(partition, deque())
        while done_offset is not None and queue and queue[0].offset <= done_offset:
            queue.popleft()
        return queue

    def _detach(self, partition: int, reader: "LocalCommandReader", undone: Sequence[Delivered]) -> None:
        if self._readers.get(partition) is reader:
            del self._readers[partition]
        self._queues.setdefault(partition, deque()).extendleft(reversed(undone))

    def _mark_done(self, partition: int, offset: int) -> None:
        self._done[partition] = max(self._done.get(partition, -1), offset)


class LocalCommandReader:
    """The writer's end of the queues. Commands taken and not done go back when the partition is revoked."""

    def __init__(self, bus: LocalCommandBus) -> None:
        self._bus = bus
        self._queues: dict[int, deque[Delivered]] = {}
        self._undone: dict[int, deque[Delivered]] = {}
        self._ready: dict[int, None] = {}
        self._wakeup = asyncio.Event()
        self._closed = False

    @property
    def topic_id(self) -> str:
        """See LocalCommandBus.topic_id."""
        return self._bus.topic_id

    async def assign(self, partition: int, done_offset: int | None) -> None:
        """Read a partition after `done_offset`."""
        self._queues[partition] = self._bus._attach(partition, self, done_offset)
        self._undone[partition] = deque()
        if self._queues[partition]:
            self.wake(partition)

    async def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The offset of the newest command of each partition, -1 if it never had one."""
        return {partition: self._bus._next_offset.get(partition, 0) - 1 for partition in partitions}

    async def revoke(self, partition: int) -> None:
        """Give a partition up; what was taken and is not done will be delivered to its next reader."""
        if self._queues.pop(partition, None) is not None:
            self._ready.pop(partition, None)
            self._bus._detach(partition, self, self._undone.pop(partition))

    async def take(self, limit: int) -> list[Delivered]:
        """All that is ready, at most `limit`, every ready partition in its turn; waits for the first."""
        while not self._ready:
            if self._closed:
                raise BusUnavailable("the reader is closed")
            self._wakeup.clear()
            await self._wakeup.wait()
        return self.take_ready(limit)

    def take_ready(self, limit: int) -> list[Delivered]:
        """Like `take`, without waiting."""
        if self._closed:
            raise BusUnavailable("the reader is closed")
        taken: list[Delivered] = []
        for partition in tuple(self._ready):
            queue = self._queues[partition]
            undone = self._undone[partition]
            for _ in range(min(len(queue), limit - len(taken))):
                delivered = queue.popleft()
                undone.append(delivered)
                taken.append(delivered)
            del self._ready[partition]
            if queue:
                self._ready[partition] = None  # to the end: a busy partition does not starve the others
            if len(taken) >= limit:
                break
        return taken

    def done(self, partition: int, offset: int) -> None:
        """Everything up to `offset` has an outcome."""
        undone = self._undone.get(partition)
        while undone and undone[0].offset <= offset:
            undone.popleft()
        self._bus._mark_done(partition, offset)

    def wake(self, partition: int) -> None:
        """A command arrived."""
        if partition in self._queues:
            self._ready[partition] = None
            self._wakeup.set()

    async def close(self) -> None:
        """Give everything up and end a waiting take."""
        for partition in tuple(self._queues):
            await self.revoke(partition)
        self._closed = True
        self._wakeup.set()


class LocalRecordBus:
    """room.log as a bounded tail for each partition."""

    def __init__(self) -> None:
        self._tails: dict[int, deque[LogRecord]] = {}
        self._readers: set[LocalRecordReader] = set()

    async def announce(self, partition: int, records: Sequence[LogRecord]) -> None:
        """Append records in order; the oldest beyond the bound are dropped."""
        self._tails.setdefault(partition, deque(maxlen=RETAINED_RECORDS)).extend(records)
        for reader in tuple(self._readers):
            reader.wake(partition)

    async def find_ends(self, partitions: Sequence[int]) -> dict[int, LogEnd]:
        """The newest record of each of these partitions that has any."""
        newest = {partition: tail[-1] for partition in partitions if (tail := self._tails.get(partition))}
        return {partition: LogEnd(record.incarnation, record.position) for partition, record in newest.items()}

    async def open_reader(self) -> "LocalRecordReader":
        """A consumer that has no partition yet."""
        reader = LocalRecordReader(self)
        self._readers.add(reader)
        return reader

    def _after(self, partition: int, position: int, limit: int) -> list[LogRecord]:
        # Readers are close behind: from the newest back is a few steps.
        records: list[LogRecord] = []
        for record in reversed(self._tails.get(partition, ())):
            if record.position <= position:
                break
            records.append(record)
        records.reverse()
        return records[:limit]


class LocalRecordReader:
    """One consumer's places in room.log."""

    def __init__(self, bus: LocalRecordBus) -> None:
        self._bus = bus
        self._positions: dict[int, int] = {}
        self._ready: dict[int, None] = {}
        self._wakeup = asyncio.Event()
        self._closed = False

    async def assign(self, partition: int, after_position: int) -> None:
        """Read a partition's records above a position."""
        self._positions[partition] = after_position
        self.wake(partition)

    async def revoke(self, partition: int) -> None:
        """Give a partition up."""
        self._positions.pop(partition, None)
        self._ready.pop(partition, None)

    async def take(self, limit: int) -> list[LogRecord]:
        """What is ready in the assigned partitions; waits for the first."""
        while True:
            for partition in tuple(self._ready):
                records = self._bus._after(partition, self._positions[partition], limit)
                if not records:
                    del self._ready[partition]
                    continue
                self._positions[partition] = records[-1].position
                return records
            if self._closed:
                raise BusUnavailable("the reader is closed")
            self._wakeup.clear()
            await self._wakeup.wait()

    def wake(self, partition: int) -> None:
        """Records arrived."""
        if partition in self._positions:
            self._ready[partition] = None
            self._wakeup.set()

    async def close(self) -> None:
        """End a waiting take and leave the bus."""
        self._closed = True
        self._bus._readers.discard(self)
        self._wakeup.set()
