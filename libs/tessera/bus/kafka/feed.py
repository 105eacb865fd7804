"""The records of hand-picked partitions of one topic, each from an offset that the caller knows.

Partitions come and go one at a time and do not disturb each other: the consumers behind a feed are
given all partitions once, and those that nobody wants are paused. A fetch stays parked at the broker
for up to `fetch_max_wait` and cannot take in a partition meanwhile, so a partition that joins is at
first also read by a second consumer with short fetches; what comes twice is dropped by its offset.

Spec: none; DESIGN.md sections 2.1 and 3.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from tessera.bus.kafka import metrics
from tessera.bus.kafka.connection import KafkaConnection, TopicDescription, to_its_end
from tessera.bus.protocol import BusUnavailable, TopicReplaced
from tessera.clock import Clock

log = structlog.get_logger(__name__)

BUFFERED_RECORDS = 2_000  # of all partitions; beyond, nothing is fetched
BUFFERED_BYTES = 16 << 20
_FETCH_RECORDS = 500
_FETCH_BYTES = 4 << 20
_POLL_MS = 60_000
_ROUND_MS = 5_000  # of the fetching loop, which every event wakes before; often is only costly
_JOINING_WAIT_MS = 20
_JOINING_MARGIN_SECONDS = 0.25  # beyond fetch_max_wait, until the steady consumer surely reads a new partition
_LOOK_SECONDS = 10.0  # how often the topic's id is looked at
_STALLED_SECONDS = 60.0  # a consumer that had no answer for so long, though brokers answer, is made anew
_RETRY_SECONDS = 0.5


class _TopicGone(BusUnavailable):
    """Brokers answer, and know no such topic."""


@dataclass(slots=True)
class _Place:
    next_offset: int
    buffer: deque[ConsumerRecord] = field(default_factory=deque)
    joining: asyncio.TimerHandle | None = None


class PartitionFeed:
    """One reader's partitions of one topic."""

    def __init__(self, connection: KafkaConnection, topic: TopicDescription, clock: Clock) -> None:
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
        self._steady: AIOKafkaConsumer | None = None
        self._joining: AIOKafkaConsumer | None = None
        self._failure: str | None = None
        self._replacement: TopicDescription | None = None
        self._running: asyncio.Task[None] | None = None
        self._closed = False
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
        self._begin(partition)

    def remove(self, partition: int) -> None:
        """Read a partition no more; what was fetched and not taken is dropped."""
        place = self._places.pop(partition, None)
        if place is None:
            return
        self._drop_buffer(partition, place)
        if place.joining is not None:
            place.joining.cancel()
        self._pause(partition)
        if partition in self._stopped:
            self._stopped.discard(partition)
            metrics.STOPPED.labels(self._topic.name).dec()

    def stop(self, partition: int) -> None:
        """Stand still in a partition until somebody adds it anew."""
        place = self._places.get(partition)
        if place is None or partition in self._stopped:
            return
        self._drop_buffer(partition, place)
        self._pause(partition)
        self._stopped.add(partition)
        metrics.STOPPED.labels(self._topic.name).inc()

    def highwater(self, partition: int) -> int | None:
        """The offset after the partition's newest record, as the last fetch said."""
        if self._steady is None or partition not in self._places:
            return None
        highwater: int | None = self._steady.highwater(self._tp(partition))
        return highwater

    async def take(self, limit: int) -> list[ConsumerRecord]:
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

    def take_ready(self, limit: int) -> list[ConsumerRecord]:
        """Like `take`, without waiting: nothing if nothing is there."""
        self._raise()
        return self._take(limit) if self._ready else []

    def _take(self, limit: int) -> list[ConsumerRecord]:
        taken: list[ConsumerRecord] = []
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
                async with (
                    self._consumer(self._connection.settings.fetch_max_wait) as self._steady,
                    self._consumer(_JOINING_WAIT_MS) as self._joining,
                    asyncio.TaskGroup() as tasks,
                ):
                    for partition in self._places.keys() - self._stopped:
                        self._begin(partition)
                    tasks.create_task(self._pump(self._steady))
                    tasks.create_task(self._pump(self._joining))
                    tasks.create_task(self._watch(self._steady))
            except Exception as error:  # whatever it is: with new consumers from where the buffers end
                metrics.READER_FAILURES.labels(self._topic.name).inc()
                self._failure = f"topic {self._topic.name} cannot be read: {_reason(error)}"
                self._wakeup.set()
            await self._clock.sleep(_RETRY_SECONDS)

    @asynccontextmanager
    async def _consumer(self, wait_ms: int) -> AsyncIterator[AIOKafkaConsumer]:
        """A consumer that has all partitions and reads none."""
        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=wait_ms,
            fetch_max_bytes=_FETCH_BYTES,
            consumer_timeout_ms=_ROUND_MS,
            **self._connection.client_options(),
        )
        try:
            await to_its_end(consumer.start())
            partitions = [self._tp(partition) for partition in range(self._topic.partitions)]
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            consumer.pause(*partitions)
            yield consumer
        finally:
            self._steady = self._joining = None  # nobody touches a consumer that is being stopped
            await consumer.stop()

    async def _pump(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            await self._room.wait()
            try:
                fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_FETCH_RECORDS)
            except OffsetOutOfRangeError as error:
                for partition, offset in error.args[0].items():
                    await self._mend_offset(consumer, partition, offset)
                continue
            for partition, records in fetched.items():
                self._accept(partition.partition, records)

    def _accept(self, partition: int, records: Sequence[ConsumerRecord]) -> None:
        place = self._places.get(partition)
        if place is None or partition in self._stopped:
            return
        # Both consumers began where the place did and leave nothing out, so what is older was had from the other.
        new = [record for record in records if record.offset >= place.next_offset]
        if not new:
            return
        place.buffer.extend(new)
        place.next_offset = new[-1].offset + 1
        self._count(len(new), sum(map(_size, new)))
        delay = (self._clock.now_ms() - new[0].timestamp) / 1000
        metrics.ARRIVAL_SECONDS.labels(self._topic.name).observe(max(0.0, delay))
        self._ready[partition] = None
        self._wakeup.set()

    async def _mend_offset(self, consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> None:
        """Begin where the partition begins, if retention or somebody has emptied it up to there."""
        place = self._places.get(partition.partition)
        if place is None:
            return
        if place.next_offset == offset:
            await self._look_at_topic()
            there = await self._connection.offset_range(self._topic.name, partition.partition)
            if self._places.get(partition.partition) is not place or self._replacement is not None:
                return  # whoever removed or added the partition meanwhile has begun it anew
            if offset > there.end:
                self._replace(self._topic)
                return
            place.next_offset = max(offset, there.start)
        consumer.seek(partition, place.next_offset)

    async def _watch(self, consumer: AIOKafkaConsumer) -> None:
        answered = self._clock.now_ms()
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            try:
                await self._look_at_topic()
            except _TopicGone:
                raise  # the consumers would ask for it without a pause
            except BusUnavailable as error:
                log.warning("topic not looked at", topic=self._topic.name, error=str(error))
                answered = self._clock.now_ms()  # no wonder that the consumer has no answers either
                continue
            times = [consumer.last_poll_timestamp(self._tp(one)) for one in self._places.keys() - self._stopped]
            answered = max([answered, *(time for time in times if time is not None)])
            is_idle = not times or not self._room.is_set()
            if not is_idle and self._clock.now_ms() - answered > _STALLED_SECONDS * 1000:
                raise BusUnavailable("brokers answer, but not the consumer")
            if is_idle:
                answered = self._clock.now_ms()

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

    # Partitions of the consumers

    def _begin(self, partition: int) -> None:
        place = self._places[partition]
        for consumer in self._consumers():
            consumer.seek(self._tp(partition), place.next_offset)
            consumer.resume(self._tp(partition))
        if self._joining is not None:
            if place.joining is not None:
                place.joining.cancel()
            seconds = self._connection.settings.fetch_max_wait / 1000 + _JOINING_MARGIN_SECONDS
            place.joining = asyncio.get_running_loop().call_later(seconds, self._joined, partition, place)

    def _joined(self, partition: int, place: _Place) -> None:
        if self._joining is not None and self._places.get(partition) is place:
            self._joining.pause(self._tp(partition))

    def _pause(self, partition: int) -> None:
        for consumer in self._consumers():
            consumer.pause(self._tp(partition))

    def _consumers(self) -> Iterable[AIOKafkaConsumer]:
        return [consumer for consumer in (self._steady, self._joining) if consumer is not None]

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic.name, partition)

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


def _size(record: ConsumerRecord) -> int:
    return len(record.value or b"")


def _reason(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
