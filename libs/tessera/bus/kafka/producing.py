"""Handing records to the brokers, with a bound on what is under way.

acks=all, no linger: while one request is under way to a broker, what comes meanwhile is gathered for the next. What a
broker does not take is tried again until its sender's time is over, at whoever leads the partition then. Neither
idempotence nor transactions are relied upon: a record may come twice or, after an unknown end, later.

Spec: none; DESIGN.md section 3, docs/adr/0005.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.errors import LeaderNotAvailableError, MessageSizeTooLargeError, for_code

from tessera.bus.kafka import metrics
from tessera.bus.kafka.connection import UNREACHABLE, KafkaConnection, to_its_end
from tessera.bus.kafka.produce_request import Outgoing, Place, Produce, Produced, make_batch
from tessera.bus.protocol import BusBusy, BusUnavailable
from tessera.clock import Clock

log = structlog.get_logger(__name__)

MAX_RECORD_BYTES = 8 << 20
_BATCH_BYTES = 256 << 10  # of one partition in one request; a record that is larger goes alone
_REQUEST_BYTES = 4 << 20
_START_PAUSE_SECONDS = 0.3  # between two tries to reach the cluster
_RETRY_SECONDS = 0.1
_LATER_RETRY_SECONDS = 0.3  # once it is more than a moment: a broker that starts needs the processor
_MOMENT_SECONDS = 1.0
_RENEW_SECONDS = 5.0  # of failures alone, after which all is begun anew at the configured addresses
_BUSY_RETRY_MS = 1_000


class InFlight:
    """What one topic may have under way, in records and bytes."""

    def __init__(self, topic: str, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._count = 0
        self._bytes = 0
        self._gauge = metrics.IN_FLIGHT.labels(topic)
        self.acknowledged_seconds = metrics.ACKNOWLEDGED_SECONDS.labels(topic)

    @contextmanager
    def places(self, count: int, size: int) -> Iterator[None]:
        """Hold places for `count` records of `size` bytes together; whatever their size, some always go.

        Raises:
            BusBusy: there are none.
        """
        if self._count and (self._count + count > self._limit or self._bytes + size > self._limit_bytes):
            raise BusBusy(_BUSY_RETRY_MS)
        self._count += count
        self._bytes += size
        self._gauge.set(self._count)
        try:
            yield
        finally:
            self._count -= count
            self._bytes -= size
            self._gauge.set(self._count)


@dataclass(slots=True, eq=False)
class _Entry:
    """Records of one partition that are sent together; `taken` gets the offset of the last."""

    place: Place
    records: Sequence[Outgoing]
    size: int
    taken: "asyncio.Future[int]"


@dataclass(slots=True, eq=False)
class _Lane:
    """What goes to one broker; one request is under way at a time."""

    node: int
    waiting: deque[_Entry] = field(default_factory=deque)
    is_busy: bool = False


class Producing:
    """The producer of one process; it connects with the first record and after every loss."""

    def __init__(self, connection: KafkaConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._client: AIOKafkaClient | None = None
        self._lanes: dict[int, _Lane] = {}
        self._homeless: deque[_Entry] = deque()  # who leads their partition is to be found out
        self._finding = False
        self._failed_at: float | None = None
        self._failing_since: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def send(self, topic: str, partition: int, records: Sequence[Outgoing], in_flight: InFlight) -> int:
        """Hand over records (one at least) of one partition, in order, and wait until all are there.

        Returns:
            The offset of the last.

        Raises:
            BusBusy: too much is under way; none was sent.
            BusUnavailable: some were not taken, or nobody knows.
        """
        with in_flight.places(len(records), sum(len(value) for value, _headers in records)):
            started = self._clock.monotonic()
            try:
                async with asyncio.timeout(self._connection.timeout_seconds):
                    for slice_ in _slices(records):
                        offset = await self._send((topic, partition), slice_)
            except UNREACHABLE as error:
                reason = type(error).__name__
                metrics.SENDS_FAILED.labels(topic, reason).inc()
                raise BusUnavailable(f"topic {topic} does not take the record: {str(error) or reason}") from error
            in_flight.acknowledged_seconds.observe(self._clock.monotonic() - started)
            return offset

    async def close(self) -> None:
        """End the producer; what is under way has the request's time-out left."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._connection.timeout_seconds)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._leave()

    async def _send(self, place: Place, records: Sequence[Outgoing]) -> int:
        if self._closed:
            raise BusUnavailable("the bus is closed")
        size = sum(len(value) for value, _headers in records)
        if size > MAX_RECORD_BYTES:
            raise MessageSizeTooLargeError(f"{size} bytes")
        entry = _Entry(place, records, size, asyncio.get_running_loop().create_future())
        self._queue(entry)
        return await entry.taken

    # Who leads what

    def _queue(self, entry: _Entry) -> None:
        # What came before must not be overtaken.
        node = None if self._homeless else self._leader_of(entry.place)
        if node is None:
            self._homeless.append(entry)
            if not self._finding:
                self._finding = True
                self._begin(self._find_leaders())
            return
        lane = self._lanes.setdefault(node, _Lane(node))
        lane.waiting.append(entry)
        if not lane.is_busy:
            lane.is_busy = True
            self._begin(self._work(lane))

    def _leader_of(self, place: Place) -> int | None:
        if self._client is None:
            return None
        node: int | None = self._client.cluster.leader_for_partition(TopicPartition(*place))
        return None if node is None or node < 0 else node

    async def _find_leaders(self) -> None:
        """Look who leads the partitions of what is homeless, until nothing is."""
        try:
            while self._drop_given_up():
                client = await self._opened()
                topics = {entry.place[0] for entry in self._homeless} | client.cluster.topics()
                async with asyncio.timeout(self._connection.timeout_seconds):
                    await client.set_topics(topics)
                    await client.force_metadata_update()
                entries, self._homeless = self._homeless, deque()
                while entries and self._leader_of(entries[0].place) is not None:
                    self._queue(entries.popleft())
                self._homeless.extendleft(reversed(entries))
                if self._homeless:
                    await self._clock.sleep(_RETRY_SECONDS)
        except UNREACHABLE as error:
            self._has_failed(error)
            self._fail_all(error)
        finally:
            self._finding = False

    def _drop_given_up(self) -> bool:
        """Whether anybody still waits for what is homeless."""
        self._homeless = deque(entry for entry in self._homeless if not entry.taken.done())
        return bool(self._homeless)

    def _has_failed(self, error: BaseException) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock.monotonic()
            log.warning("records are not taken", error=repr(error))

    def _fail_all(self, error: Exception) -> None:
        entries, self._homeless = self._homeless, deque()
        for entry in entries:
            if not entry.taken.done():
                entry.taken.set_exception(error)

    async def _opened(self) -> AIOKafkaClient:
        now = self._clock.monotonic()
        if self._failing_since is not None and now - self._failing_since > _RENEW_SECONDS:
            self._failing_since = now
            await self._leave()  # brokers may have moved
        if self._client is None:
            if self._failed_at is not None and now - self._failed_at < _START_PAUSE_SECONDS:
                raise LeaderNotAvailableError("Kafka did not answer a moment ago")
            client = AIOKafkaClient(**self._connection.client_options())
            try:
                await to_its_end(client.bootstrap())
            except BaseException:
                self._failed_at = self._clock.monotonic()
                await client.close()
                raise
            self._client, self._failed_at = client, None
        return self._client

    async def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    # Sending

    async def _work(self, lane: _Lane) -> None:
        try:
            while lane.waiting:
                batches = _next_batches(lane.waiting)
                if batches:
                    await self._request(lane, batches)
        finally:
            lane.is_busy = False

    async def _request(self, lane: _Lane, batches: Mapping[Place, Sequence[_Entry]]) -> None:
        now_ms = self._clock.now_ms()
        encoded = {
            place: make_batch([record for entry in entries for record in entry.records], now_ms)
            for place, entries in batches.items()
        }
        client = self._client
        answer: Mapping[Place, Produced] = {}
        try:
            if client is not None:
                request = Produce(encoded, self._connection.settings.request_timeout)
                answer = await client.send(lane.node, request)
        except UNREACHABLE as error:
            self._has_failed(error)
        if client is not None and client is not self._client:
            await client.close()  # given up meanwhile: it may have connected once more
        again: list[_Entry] = []
        for place, entries in batches.items():
            produced = answer.get(place)
            if produced is None or (produced.error and _may_pass(produced.error)):
                if produced is not None:
                    self._has_failed(for_code(produced.error)())
                again += entries
            else:
                self._failing_since = None
                _settle(entries, produced)
        if again:
            self._try_again(lane, again, is_away=not answer)

    def _try_again(self, lane: _Lane, entries: Sequence[_Entry], *, is_away: bool) -> None:
        """Who leads their partitions is to be found out anew, before whatever came after them."""
        if is_away:
            entries = [*entries, *lane.waiting]
            lane.waiting.clear()
        self._homeless.extendleft(reversed(entries))
        if not self._finding:
            self._finding = True
            self._begin(self._find_after_pause())

    async def _find_after_pause(self) -> None:
        failing_since = self._failing_since
        is_new = failing_since is None or self._clock.monotonic() - failing_since < _MOMENT_SECONDS
        await self._clock.sleep(_RETRY_SECONDS if is_new else _LATER_RETRY_SECONDS)
        await self._find_leaders()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _slices(records: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """The records in order, each slice no larger than a batch, or of one record."""
    begin = size = 0
    for index, (value, _headers) in enumerate(records):
        if index > begin and size + len(value) > _BATCH_BYTES:
            yield records[begin:index]
            begin, size = index, 0
        size += len(value)
    yield records[begin:]


def _next_batches(waiting: deque[_Entry]) -> dict[Place, list[_Entry]]:
    """Take what goes into the next request, in order; what nobody waits for any more is dropped."""
    batches: dict[Place, list[_Entry]] = {}
    sizes: dict[Place, int] = {}
    total = 0
    while waiting:
        entry = waiting[0]
        if not entry.taken.done():
            size = sizes.get(entry.place, 0) + entry.size
            if (size > entry.size and size > _BATCH_BYTES) or (batches and total + entry.size > _REQUEST_BYTES):
                break
            sizes[entry.place] = size
            total += entry.size
            batches.setdefault(entry.place, []).append(entry)
        waiting.popleft()
    return batches


def _may_pass(code: int) -> bool:
    error = for_code(code)
    return bool(error.retriable or error.invalid_metadata)


def _settle(entries: Sequence[_Entry], produced: Produced) -> None:
    offset = produced.base_offset - 1
    for entry in entries:
        offset += len(entry.records)
        if entry.taken.done():
            continue
        if produced.error:
            entry.taken.set_exception(for_code(produced.error)())
        else:
            entry.taken.set_result(offset)
