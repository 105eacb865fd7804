"""Handing records to the brokers, with a bound on what is under way.

acks=all, no linger. Neither idempotence nor transactions are relied upon: a record may come twice
or, after an unknown end, later.

Spec: none; DESIGN.md section 3.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from aiokafka import AIOKafkaProducer

from tessera.bus.kafka import metrics
from tessera.bus.kafka.connection import UNREACHABLE, KafkaConnection, to_its_end
from tessera.bus.kafka.envelope import Headers
from tessera.bus.protocol import BusBusy, BusUnavailable
from tessera.clock import Clock

log = structlog.get_logger(__name__)

MAX_RECORD_BYTES = 8 << 20
_BATCH_BYTES = 256 << 10  # of one partition in one request; one request is under way for each broker
_START_PAUSE_SECONDS = 0.5  # between two tries to reach the cluster
_RENEW_SECONDS = 30.0  # of failures alone, after which a new producer is made
_BUSY_RETRY_MS = 1_000

Outgoing = tuple[bytes, Headers]
"""A record's bytes, and what travels beside them."""


class InFlight:
    """What one topic may have under way, in records and bytes."""

    def __init__(self, topic: str, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._count = 0
        self._bytes = 0
        self._gauge = metrics.IN_FLIGHT.labels(topic)

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


class Producing:
    """The producer of one process; it connects with the first record and after every loss."""

    def __init__(self, connection: KafkaConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._failed_at: float | None = None
        self._failing_since: float | None = None
        self._stopping: set[asyncio.Task[None]] = set()
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
                    producer = await self._started()
                    # One after the other: two tasks that wait for the same full batch may overtake each other.
                    acknowledgements = [
                        await producer.send(topic, value, partition=partition, headers=headers)
                        for value, headers in records
                    ]
                    *_others, last = await asyncio.gather(*acknowledgements)
            except UNREACHABLE as error:
                reason = type(error).__name__
                metrics.SENDS_FAILED.labels(topic, reason).inc()
                self._give_up_at_last()
                raise BusUnavailable(f"topic {topic} does not take the record: {str(error) or reason}") from error
            self._failing_since = None
            metrics.ACKNOWLEDGED_SECONDS.labels(topic).observe(self._clock.monotonic() - started)
            return int(last.offset)

    async def close(self) -> None:
        """End the producer; what is under way has the request's time-out left."""
        self._closed = True
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()
        await asyncio.gather(*self._stopping)

    def _give_up_at_last(self) -> None:
        """Begin at the configured addresses again: a producer knows brokers by where they once were."""
        now = self._clock.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > _RENEW_SECONDS and self._producer is not None:
            stopping = asyncio.create_task(self._producer.stop())
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            self._producer = self._failing_since = None

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._starting:
            if self._producer is None:
                self._producer = await self._start()
            return self._producer

    async def _start(self) -> AIOKafkaProducer:
        if self._closed:
            raise BusUnavailable("the bus is closed")
        now = self._clock.monotonic()
        if self._failed_at is not None and now - self._failed_at < _START_PAUSE_SECONDS:
            raise BusUnavailable("Kafka did not answer a moment ago")
        producer = AIOKafkaProducer(
            acks="all",
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
            **self._connection.client_options(),
        )
        try:
            await to_its_end(producer.start())
        except BaseException:
            self._failed_at = self._clock.monotonic()
            await producer.stop()
            raise
        self._failed_at = None
        return producer
