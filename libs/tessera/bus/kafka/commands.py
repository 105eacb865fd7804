"""room.commands on Kafka.

Spec: none; DESIGN.md section 3, docs/adr/0002.
"""

from collections.abc import Callable, Collection, Sequence

from tessera.bus.admission import undone_limit
from tessera.bus.kafka import metrics
from tessera.bus.kafka.backlog import Backlog, ReadDoneOffsets
from tessera.bus.kafka.cluster import Cluster
from tessera.bus.kafka.decoding import decode_all
from tessera.bus.kafka.envelope import make_headers
from tessera.bus.kafka.feed import PartitionFeed
from tessera.bus.kafka.fetch_request import FetchedRecord
from tessera.bus.kafka.producing import InFlight, Producing
from tessera.bus.kafka.topics import COMMANDS
from tessera.bus.protocol import Delivered
from tessera.clock import Clock
from tessera.commands import Command, decode_command, encode_command
from tessera.partition_groups import partition_group


class KafkaCommandBus:
    """`tessera.bus.CommandBus` on Kafka."""

    def __init__(self, cluster: Cluster, producing: Producing, read_done: ReadDoneOffsets, clock: Clock) -> None:
        settings = cluster.connection.settings
        self._cluster = cluster
        self._producing = producing
        self._clock = clock
        self._topic = cluster.connection.topic(COMMANDS)
        self._in_flight = InFlight(self._topic, settings.max_in_flight, settings.max_in_flight_bytes)
        self._backlog = Backlog(read_done, self._find_topic_id, clock)
        self._readers: set[KafkaCommandReader] = set()

    async def send(self, command: Command) -> None:
        """Hand a command to its partition and wait for its acknowledgement.

        Raises:
            BusBusy, BusUnavailable: it was not taken, or that is unknown; the caller withdraws its id.
        """
        await self._cluster.require_topics()
        await self._backlog.admit(command.partition, undone_limit(command))
        record = (encode_command(command), make_headers(command.traceparent))
        offset = await self._producing.send(self._topic, command.partition, [record], self._in_flight)
        self._backlog.appended(command.partition, offset)

    async def open_reader(self) -> "KafkaCommandReader":
        """A reader that has no partition yet; waits until Kafka answers."""
        topic = (await self._cluster.await_topics())[self._topic]
        feed = PartitionFeed(self._cluster.connection, topic, self._clock)
        feed.open()
        reader = KafkaCommandReader(self._cluster, feed, self._topic, self._readers.discard)
        self._readers.add(reader)
        return reader

    async def close(self) -> None:
        """Close the readers that are still open."""
        for reader in tuple(self._readers):
            await reader.close()

    async def _find_topic_id(self) -> str:
        found = await self._cluster.connection.describe_topics([self._topic])
        return found[self._topic].topic_id


class KafkaCommandReader:
    """`tessera.bus.CommandReader` on Kafka. Nothing goes back: the next reader begins at the done offset."""

    def __init__(
        self,
        cluster: Cluster,
        feed: PartitionFeed,
        topic: str,
        on_close: "Callable[[KafkaCommandReader], None]",
    ) -> None:
        self._cluster = cluster
        self._feed = feed
        self._topic = topic
        self._on_close = on_close
        self._undone: dict[int, int] = {}

    @property
    def topic_id(self) -> str:
        """Changes only when `take` raises TopicReplaced."""
        return self._feed.topic_id

    async def assign(self, partition: int, done_offset: int | None) -> None:
        """Read a partition after `done_offset`, or from what is there."""
        self._feed.add(partition, 0 if done_offset is None else done_offset + 1)

    async def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The offset of the newest command of each partition, -1 if it never had one.

        Raises:
            BusUnavailable: Kafka does not say.
        """
        ranges = await self._cluster.connection.offset_ranges(self._topic, partitions)
        return {partition: there.end - 1 for partition, there in ranges.items()}

    async def revoke(self, partition: int) -> None:
        """Give a partition up; commands of it that were not taken yet are not delivered."""
        self._feed.remove(partition)
        self._tell_undone(partition, 0)

    async def take(self, limit: int) -> list[Delivered]:
        """What is ready, in order for each partition; waits for the first.

        Raises:
            TopicReplaced, BusUnavailable: see `CommandReader`.
        """
        while True:
            if delivered := self._decode(await self._feed.take(limit)):
                return delivered

    def take_ready(self, limit: int) -> list[Delivered]:
        """Like `take`, without waiting."""
        return self._decode(self._feed.take_ready(limit))

    def _decode(self, records: Sequence[FetchedRecord]) -> list[Delivered]:
        return [
            Delivered(record.partition, record.offset, command)
            for record, command in decode_all(self._feed, self._topic, records, decode_command)
        ]

    def done(self, partition: int, offset: int) -> None:
        """Everything up to `offset` has an outcome."""
        highwater = self._feed.highwater(partition)
        if highwater is not None:
            self._tell_undone(partition, max(0, highwater - 1 - offset))

    async def close(self) -> None:
        """End a waiting take and give everything up."""
        for partition in self._undone:
            self._tell_undone(partition, 0)
        await self._feed.close()
        self._on_close(self)

    def _tell_undone(self, partition: int, count: int) -> None:
        metrics.UNDONE.labels(partition_group(partition)).inc(count - self._undone.get(partition, 0))
        self._undone[partition] = count
