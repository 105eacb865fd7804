"""room.log on Kafka.

Offsets mean nothing to its consumers: a place in the log is a position, which the topic may hold
more than once (announced again) or not at all (emptied, held up). Readers are given ascending
positions and see what is missing by arithmetic; PostgreSQL has it.

Spec: none; DESIGN.md sections 2.2 and 4.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tessera.bus.kafka.cluster import Cluster
from tessera.bus.kafka.decoding import decode_all
from tessera.bus.kafka.envelope import make_headers
from tessera.bus.kafka.feed import PartitionFeed
from tessera.bus.kafka.fetch_request import FetchedRecord
from tessera.bus.kafka.producing import InFlight, Producing
from tessera.bus.kafka.topics import RECORDS
from tessera.bus.protocol import BusUnavailable, LogEnd, TopicReplaced
from tessera.clock import Clock
from tessera.records import LogRecord, decode_record, encode_record

ENDS_SECONDS = 5.0
PAUSE_SECONDS = 0.02  # nobody waits for room.log: what comes so soon after another record may come with the next
MAX_REWIND = 2_000  # records before the newest that a reader goes back to; beyond, PostgreSQL is the better source


class KafkaRecordBus:
    """`tessera.bus.RecordBus` on Kafka."""

    def __init__(self, cluster: Cluster, producing: Producing, clock: Clock) -> None:
        settings = cluster.connection.settings
        self._cluster = cluster
        self._producing = producing
        self._clock = clock
        self._topic = cluster.connection.topic(RECORDS)
        self._in_flight = InFlight(self._topic, settings.max_in_flight, settings.max_in_flight_bytes)
        self._readers: set[KafkaRecordReader] = set()

    async def announce(self, partition: int, records: Sequence[LogRecord]) -> None:
        """Append records in order.

        Raises:
            BusUnavailable: nobody knows how many were taken; the pump tries from the same place again.
        """
        if not records:
            return
        await self._cluster.require_topics()
        encoded = [(encode_record(record), make_headers(record.traceparent)) for record in records]
        await self._producing.send(self._topic, partition, encoded, self._in_flight)

    async def find_ends(self, partitions: Sequence[int]) -> dict[int, LogEnd]:
        """The newest record of each of these partitions that has any; one that cannot be read is left out.

        Raises:
            BusUnavailable: the topic cannot be read now.
        """
        topic = (await self._cluster.require_topics())[self._topic]
        feed = PartitionFeed(self._cluster.connection, topic, self._clock)
        feed.open()
        try:
            return await self._read_ends(feed, partitions)
        finally:
            await feed.close()

    async def _read_ends(self, feed: PartitionFeed, partitions: Sequence[int]) -> dict[int, LogEnd]:
        ranges = await self._cluster.connection.offset_ranges(self._topic, partitions)
        wanted: set[int] = set()
        for partition, there in ranges.items():
            if there.end > there.start:
                wanted.add(partition)
                feed.add(partition, there.end - 1)
        ends: dict[int, LogEnd] = {}
        try:
            async with asyncio.timeout(ENDS_SECONDS):
                while wanted:
                    fetched = await feed.take(len(wanted))
                    for raw, record in decode_all(feed, self._topic, fetched, decode_record):
                        ends[raw.partition] = LogEnd(record.incarnation, record.position)
                    wanted.difference_update(raw.partition for raw in fetched)
        except TimeoutError:
            raise BusUnavailable(f"the ends of {len(wanted)} partitions were not read in time") from None
        return ends

    async def open_reader(self) -> "KafkaRecordReader":
        """A consumer that has no partition yet.

        Raises:
            BusUnavailable: Kafka does not answer.
        """
        topic = (await self._cluster.require_topics())[self._topic]
        feed = PartitionFeed(self._cluster.connection, topic, self._clock, pause_seconds=PAUSE_SECONDS)
        feed.open()
        reader = KafkaRecordReader(self._cluster, feed, self._topic, self._readers.discard)
        self._readers.add(reader)
        return reader

    async def close(self) -> None:
        """Close the readers that are still open."""
        for reader in tuple(self._readers):
            await reader.close()


@dataclass(slots=True)
class _Position:
    """Where a reader is in a partition.

    Attributes:
        start: the partition's first offset, as long as the newest record has not shown how far back to begin.
    """

    last: int
    start: int | None


class KafkaRecordReader:
    """`tessera.bus.RecordReader` on Kafka."""

    def __init__(
        self,
        cluster: Cluster,
        feed: PartitionFeed,
        topic: str,
        on_close: "Callable[[KafkaRecordReader], None]",
    ) -> None:
        self._cluster = cluster
        self._feed = feed
        self._topic = topic
        self._on_close = on_close
        self._positions: dict[int, _Position] = {}

    async def assign(self, partition: int, after_position: int) -> None:
        """Read a partition's records above a position; what the topic no longer has is skipped (a hole).

        Raises:
            BusUnavailable: Kafka does not answer.
        """
        there = await self._cluster.connection.offset_range(self._topic, partition)
        # The newest record says whether anything is missing, and how far back that lies.
        self._positions[partition] = _Position(after_position, there.start)
        self._feed.add(partition, max(there.start, there.end - 1))

    async def revoke(self, partition: int) -> None:
        """Give a partition up."""
        self._positions.pop(partition, None)
        self._feed.remove(partition)

    async def take(self, limit: int) -> list[LogRecord]:
        """What is ready in the assigned partitions, each in ascending positions; waits for the first.

        Raises:
            BusUnavailable: the topic cannot be read now.
        """
        while True:
            try:
                fetched = await self._feed.take(limit)
            except TopicReplaced:
                # Positions go on whatever the topic is.
                for partition in self._positions:
                    self._feed.add(partition, 0)
                continue
            records: list[LogRecord] = []
            rewound: set[int] = set()
            for raw, record in decode_all(self._feed, self._topic, fetched, decode_record):
                if raw.partition in rewound:
                    continue
                if self._rewind(raw, record):
                    rewound.add(raw.partition)
                elif self._is_new(record):
                    records.append(record)
            if records:
                return records

    async def close(self) -> None:
        """End a waiting take and leave the bus."""
        await self._feed.close()
        self._on_close(self)

    def _rewind(self, raw: FetchedRecord, record: LogRecord) -> bool:
        """Go back to the first record that the reader lacks, when a partition's first one comes; again if need be."""
        position = self._positions.get(raw.partition)
        if position is None or position.start is None:
            return False
        # Nearer to it each time: what was announced more than once lies in between.
        missing = record.position - position.last - 1
        offset = max(position.start, raw.offset - missing)
        if 0 < missing <= MAX_REWIND and offset < raw.offset:
            self._feed.add(raw.partition, offset)
            return True
        position.start = None
        return False

    def _is_new(self, record: LogRecord) -> bool:
        position = self._positions.get(record.partition)
        if position is None or record.position <= position.last:
            return False
        position.last = record.position
        return True
