"""The records of hand-picked partitions of one topic, each from an offset that the caller knows.

Partitions come and go one at a time and do not disturb each other. What a fetch brought twice is dropped by its
offset.

Spec: none; DESIGN.md sections 2.1 and 3.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from tessera.bus.kafka import metrics
from tessera.bus.kafka.connection import KafkaConnection, TopicDescription
from tessera.bus.kafka.fetch_request import FetchedRecord
from tessera.bus.kafka.fetching import Fetcher
from tessera.bus.protocol import BusUnavailable, TopicReplaced
from tessera.clock import Clock

log = structlog.get_logger(__name__)

BUFFERED_RECORDS = 2_000  # of all partitions; beyond, nothing is fetched
BUFFERED_BYTES = 16 << 20
_LOOK_SECONDS = 10.0  # how often the topic's id is looked at
_RETRY_SECONDS = 0.5


class _TopicGone(BusUnavailable):
    """Brokers answer, and know no such topic."""


@dataclass(slots=True)
class _Place:
    next_offset: int
    buffer: deque[FetchedRecord] = field(default_factory=deque)


class PartitionFeed:
    """One reader's partitions of one topic."""

    def __init__(
        self, connection: KafkaConnection, topic: TopicDescription, clock: Clock, *, pause_seconds: float = 0.0
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._clock = clock
        self._places: dict[int, _Place] = {}
        self._stopped: set[int] = set()
        self._ready: dict[int, None] = {}
        self._wakeup = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._buffered = 0
        self._buffered_bytes = 0
        self._fetcher = Fetcher(
            connection,
            topic.name,
            clock,
            offset_of=self._offset_of,
            on_fetched=self._accept,
            on_out_of_range=self._mend_offset,
            room=self._room,
            pause_seconds=pause_seconds,
        )
        self._failure: str | None = None
        self._replacement: TopicDescription | None = None
        self._running: asyncio.Task[None] | None = None
        self._closed = False
        self._arrival_seconds = metrics.ARRIVAL_SECONDS.labels(topic.name)
        metrics.TOPICS_REPLACED.labels(topic.name)  # at 0, or Prometheus sees no increase to the first one

    @property
    def topic_id(self) -> str:
        """Of the topic whose offsets these are; changes only when `take` raises TopicReplaced."""
        return self._topic.topic_id

    @property
    def partitions(self) -> list[int]:
        """Those that are read."""
        return list(self._places)

    def open(self) -> None:
        """Begin to read in the background; brokers that are away are waited for."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End a waiting `take` and leave the cluster."""
        self._closed = True
        self._wakeup.set()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        for partition in self.partitions:
            self.remove(partition)

    def add(self, partition: int, offset: int) -> None:
        """Read a partition from an offset; if the partition begins later, from there."""
        self.remove(partition)
        self._places[partition] = _Place(offset)
        self._fetcher.begin(partition)

    def remove(self, partition: int) -> None:
        """Read a partition no more; what was fetched and not taken is dropped."""
        place = self._places.pop(partition, None)
        if place is None:
            return
        self._drop_buffer(partition, place)
        self._fetcher.end(partition)
        if partition in self._stopped:
            self._stopped.discard(partition)
            metrics.STOPPED.labels(self._topic.name).dec()

    def stop(self, partition: int) -> None:
        """Stand still in a partition until somebody adds it anew."""
        place = self._places.get(partition)
        if place is None or partition in self._stopped:
            return
        self._drop_buffer(partition, place)
        self._fetcher.end(partition)
        self._stopped.add(partition)
        metrics.STOPPED.labels(self._topic.name).inc()

    def highwater(self, partition: int) -> int | None:
        """The offset after the partition's newest record, as the last fetch said."""
        return self._fetcher.highwater(partition)

    async def take(self, limit: int) -> list[FetchedRecord]:
        """All that is there, at most `limit`, every partition in its turn; waits for the first.

        Raises:
            TopicReplaced: the offsets mean nothing any more; the feed has no partitions now.
            BusUnavailable: once for every time that the topic could not be read, and when the feed is closed.
        """
        while True:
            if taken := self.take_ready(limit):
                return taken
            self._wakeup.clear()
            await self._wakeup.wait()

    def take_ready(self, limit: int) -> list[FetchedRecord]:
        """Like `take`, without waiting: nothing if nothing is there."""
        self._raise()
        return self._take(limit) if self._ready else []

    def _take(self, limit: int) -> list[FetchedRecord]:
        taken: list[FetchedRecord] = []
        for partition in tuple(self._ready):
            buffer = self._places[partition].buffer
            for _ in range(min(len(buffer), limit - len(taken))):
                taken.append(buffer.popleft())
            del self._ready[partition]
            if buffer:
                self._ready[partition] = None  # to the end: a busy partition does not starve the others
            if len(taken) >= limit:
                break
        self._count(-len(taken), -sum(map(_size, taken)))
        return taken

    def _raise(self) -> None:
        if self._closed:
            raise BusUnavailable("the reader is closed")
        if self._replacement is not None:
            for partition in self.partitions:
                self.remove(partition)
            self._topic, self._replacement = self._replacement, None
            raise TopicReplaced(f"topic {self._topic.name} was made anew or cut short")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise BusUnavailable(failure)

    # Fetching

    async def _run(self) -> None:
        while True:
            try:
                await self._look_at_topic()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._fetcher.run())
                    tasks.create_task(self._watch())
            except Exception as error:  # whatever it is: anew from where the buffers end
                metrics.READER_FAILURES.labels(self._topic.name).inc()
                self._failure = f"topic {self._topic.name} cannot be read: {_reason(error)}"
                self._wakeup.set()
            await self._clock.sleep(_RETRY_SECONDS)

    def _offset_of(self, partition: int) -> int:
        return self._places[partition].next_offset

    def _accept(self, partition: int, records: Sequence[FetchedRecord], end: int) -> None:
        place = self._places.get(partition)
        if place is None or partition in self._stopped or end <= place.next_offset:
            return
        new = [record for record in records if record.offset >= place.next_offset]
        place.next_offset = end
        if not new:
            return
        place.buffer.extend(new)
        self._count(len(new), sum(map(_size, new)))
        delay = (self._clock.now_ms() - new[0].timestamp) / 1000
        self._arrival_seconds.observe(max(0.0, delay))
        self._ready[partition] = None
        self._wakeup.set()

    async def _mend_offset(self, partition: int, offset: int) -> None:
        """Begin where the partition begins, if retention or somebody has emptied it up to there."""
        place = self._places.get(partition)
        if place is None:
            return
        if place.next_offset == offset:
            await self._look_at_topic()
            there = await self._connection.offset_range(self._topic.name, partition)
            if self._places.get(partition) is not place or self._replacement is not None:
                return  # whoever removed or added the partition meanwhile has begun it anew
            if offset > there.end:
                self._replace(self._topic)
                return
            place.next_offset = max(offset, there.start)
        self._fetcher.begin(partition)

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            try:
                await self._look_at_topic()
            except _TopicGone:
                raise  # it would be asked for without a pause
            except BusUnavailable as error:
                log.warning("topic not looked at", topic=self._topic.name, error=str(error))

    async def _look_at_topic(self) -> None:
        """Notice a topic that was made anew.

        Raises:
            BusUnavailable: it is gone, or no broker answers.
        """
        name = self._topic.name
        found = (await self._connection.describe_topics([name])).get(name)
        if found is None:
            raise _TopicGone("there is no such topic")
        if found.partitions != self._topic.partitions:
            raise BusUnavailable(f"it has {found.partitions} partitions, not {self._topic.partitions}")
        if found.topic_id != (self._replacement or self._topic).topic_id:
            self._replace(found)

    def _replace(self, found: TopicDescription) -> None:
        log.error("topic made anew or cut short", topic=found.name, old=self.topic_id, new=found.topic_id)
        metrics.TOPICS_REPLACED.labels(found.name).inc()
        self._replacement = found
        self._wakeup.set()

    def _drop_buffer(self, partition: int, place: _Place) -> None:
        self._count(-len(place.buffer), -sum(map(_size, place.buffer)))
        place.buffer.clear()
        self._ready.pop(partition, None)

    def _count(self, records: int, size: int) -> None:
        self._buffered += records
        self._buffered_bytes += size
        if self._buffered < BUFFERED_RECORDS and self._buffered_bytes < BUFFERED_BYTES:
            self._room.set()
        else:
            self._room.clear()


def _size(record: FetchedRecord) -> int:
    return len(record.value)


def _reason(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
