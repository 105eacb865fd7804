"""Kafka as the worst network shows it: both topics lose, repeat and delay, and can be emptied."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from random import Random

from virtual_loop import VirtualLoop

from tessera.bus import BusUnavailable
from tessera.bus.protocol import Delivered, LogEnd
from tessera.commands import Command, decode_command, encode_command
from tessera.records import LogRecord, decode_record, encode_record

REQUEST_SECONDS = 5.0
TAKE_LIMIT = 50


@dataclass(slots=True)
class Faults:
    """What may go wrong, switched off for the end of a run. Each chance is that of one message."""

    random: Random
    on: bool = True
    kafka_down: bool = False
    redis_down: bool = False

    def happens(self, chance: float) -> bool:
        """Whether a fault strikes."""
        return self.on and self.random.random() < chance

    def delay(self) -> float:
        """Seconds that a message is under way."""
        if self.happens(0.1):
            return self.random.choice((0.05, 0.5, 3.0))
        return 0.001


@dataclass(slots=True)
class _Partition:
    entries: dict[int, bytes] = field(default_factory=dict)
    next_offset: int = 0
    ever: set[bytes] = field(default_factory=set)  # what it had, emptied since or not

    def append(self, data: bytes) -> None:
        self.ever.add(data)
        self.entries[self.next_offset] = data
        self.next_offset += 1


class Topic:
    """One topic of the broker, which outlives every process."""

    def __init__(self, loop: VirtualLoop, faults: Faults) -> None:
        self.loop = loop
        self.faults = faults
        self.partitions: dict[int, _Partition] = {}
        self._readers: dict[asyncio.Event, None] = {}  # in the same order in every run

    def of(self, partition: int) -> _Partition:
        return self.partitions.setdefault(partition, _Partition())

    def highest_positions(self) -> dict[int, int]:
        """Of the records that each partition ever had."""
        return {
            partition: max(decode_record(data).position for data in kept.ever)
            for partition, kept in self.partitions.items()
            if kept.ever
        }

    def empty(self) -> None:
        """All entries are deleted, as by a retention gone wrong; offsets go on."""
        for partition in self.partitions.values():
            partition.entries.clear()

    async def produce(self, partition: int, data: bytes) -> None:
        """Append with acks=all.

        Raises:
            BusUnavailable: it may be there, may come later, or never.
        """
        faults = self.faults
        await asyncio.sleep(faults.delay())
        if faults.kafka_down:
            await asyncio.sleep(REQUEST_SECONDS)
            raise BusUnavailable("no broker")
        if faults.happens(0.03):
            raise BusUnavailable("lost on the way")
        if faults.happens(0.02):
            self.loop.call_later(faults.random.uniform(0.1, 15), self._append, partition, data)
            raise BusUnavailable("still under way")
        self._append(partition, data)
        if faults.happens(0.03):
            self._append(partition, data)
        if faults.happens(0.03):
            await asyncio.sleep(REQUEST_SECONDS)
            raise BusUnavailable("the acknowledgement was lost")

    def _append(self, partition: int, data: bytes) -> None:
        self.of(partition).append(data)
        for event in tuple(self._readers):
            event.set()

    async def consume(self, places: dict[int, int], limit: int, wakeup: asyncio.Event) -> list[tuple[int, int, bytes]]:
        """(partition, offset, data) from each partition's place on; moves the places. Waits for the first."""
        self._readers[wakeup] = None
        try:
            while True:
                wakeup.clear()
                taken = [] if self.faults.kafka_down else self.read(places, limit)
                if taken:
                    return taken
                await wakeup.wait()
                await asyncio.sleep(self.faults.delay())
                if self.faults.happens(0.02):
                    raise BusUnavailable("fetch failed")
        finally:
            self._readers.pop(wakeup, None)

    def read(self, places: dict[int, int], limit: int) -> list[tuple[int, int, bytes]]:
        """What is there from each partition's place on; moves the places."""
        taken: list[tuple[int, int, bytes]] = []
        for partition, place in tuple(places.items()):
            kept = self.of(partition)
            for offset in range(place, kept.next_offset):
                if len(taken) >= limit:
                    break
                if (data := kept.entries.get(offset)) is not None:
                    taken.append((partition, offset, data))
                places[partition] = offset + 1
        return taken

    def wake_all(self) -> None:
        """The broker is back."""
        for event in tuple(self._readers):
            event.set()


class FaultyCommandBus:
    """room.commands as one process sees it."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    async def send(self, command: Command) -> None:
        await self._topic.produce(command.partition, encode_command(command))

    async def open_reader(self) -> "FaultyCommandReader":
        return FaultyCommandReader(self._topic)


class FaultyCommandReader:
    """A writer's consumer with partitions assigned by hand."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._places: dict[int, int] = {}
        self._wakeup = asyncio.Event()
        self._closed = False

    @property
    def topic_id(self) -> str:
        return "simulated"

    async def assign(self, partition: int, done_offset: int | None) -> None:
        self._places[partition] = 0 if done_offset is None else done_offset + 1
        self._wakeup.set()

    async def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        return {partition: self._topic.of(partition).next_offset - 1 for partition in partitions}

    async def revoke(self, partition: int) -> None:
        self._places.pop(partition, None)

    async def take(self, limit: int) -> list[Delivered]:
        if self._closed:
            raise BusUnavailable("the reader is closed")
        taken = await self._topic.consume(self._places, min(limit, TAKE_LIMIT), self._wakeup)
        return [Delivered(partition, offset, decode_command(data)) for partition, offset, data in taken]

    def take_ready(self, limit: int) -> list[Delivered]:
        if self._closed or self._topic.faults.kafka_down:
            raise BusUnavailable("nothing can be read")
        taken = self._topic.read(self._places, min(limit, TAKE_LIMIT))
        return [Delivered(partition, offset, decode_command(data)) for partition, offset, data in taken]

    def done(self, partition: int, offset: int) -> None:
        """Nothing to free: the topic is unbounded here."""

    async def close(self) -> None:
        self._closed = True
        self._places.clear()


class FaultyRecordBus:
    """room.log as one process sees it."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    async def announce(self, partition: int, records: Sequence[LogRecord]) -> None:
        for record in records:
            await self._topic.produce(partition, encode_record(record))

    async def find_ends(self, partitions: Sequence[int]) -> dict[int, LogEnd]:
        await asyncio.sleep(self._topic.faults.delay())
        if self._topic.faults.kafka_down:
            raise BusUnavailable("no broker")
        ends: dict[int, LogEnd] = {}
        for partition in partitions:
            if entries := self._topic.of(partition).entries:
                record = decode_record(entries[max(entries)])
                ends[partition] = LogEnd(record.incarnation, record.position)
        return ends

    async def open_reader(self) -> "FaultyRecordReader":
        return FaultyRecordReader(self._topic)


class FaultyRecordReader:
    """A consumer that begins where the topic begins: what it has seen already comes again."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._places: dict[int, int] = {}
        self._wakeup = asyncio.Event()

    async def assign(self, partition: int, after_position: int) -> None:
        self._places[partition] = 0
        self._wakeup.set()

    async def revoke(self, partition: int) -> None:
        self._places.pop(partition, None)

    async def take(self, limit: int) -> list[LogRecord]:
        taken = await self._topic.consume(self._places, min(limit, TAKE_LIMIT), self._wakeup)
        return [decode_record(data) for _, _, data in taken]

    async def close(self) -> None:
        self._places.clear()
