"""The partitions that this process writes in one shard: taken, begun, handed over and lost.

Spec: none; DESIGN.md sections 2 (1) and 3.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import structlog

from services.rooms import metrics
from services.rooms.announcing import Pump
from services.rooms.hot_rooms import HotRooms
from services.rooms.ownership import Owner, Ownership
from tessera.bus import BusUnavailable, CommandReader, RecordBus
from tessera.bus.protocol import LogEnd
from tessera.clock import Clock
from tessera.fanout import Fanout
from tessera.records import PartitionBatch
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.leases import TakenPartition
from tessera.storage.partitions import PartitionHead, raise_incarnation
from tessera.storage.records import list_records
from tessera.storage.writer_batch import CommitRefused, CommitUnknown, Guard, WriterBatch, commit

log = structlog.get_logger(__name__)

RETRY_SECONDS = 0.1
REPUBLISHED_RECORDS = 1_000  # a taker publishes this many of what may not have been published
SETTLE_LOOKS, SETTLE_SECONDS = 20, 0.05  # at the end the pump is waited for so long


@dataclass(slots=True, eq=False)
class OwnedPartition:
    """A partition that this process writes.

    Attributes:
        undone: offsets taken and without an outcome, in order.
        careful_until: commands up to this offset run singly and are counted: they may have ended the last writer.
    """

    partition: int
    epoch: int
    incarnation: int
    head: int
    done_offset: int
    careful_until: int = -1
    undone: dict[int, None] = field(default_factory=dict)
    taken_offset: int = -1

    def done_with(self, offsets: Collection[int]) -> int:
        """The offset up to which everything is done once these are."""
        for offset in self.undone:
            if offset not in offsets:
                return offset - 1
        return max(self.taken_offset, self.done_offset)


class OwnedPartitions:
    """All of them, with their leases and the pump that announces what is committed in them.

    Args:
        placed: the partitions that lie in this shard now.
    """

    def __init__(
        self,
        shard: str,
        database: Database,
        placed: Callable[[], Sequence[int]],
        owner: Owner,
        *,
        rooms: HotRooms,
        records: RecordBus,
        fanout: Fanout,
        clock: Clock,
    ) -> None:
        self._shard = shard
        self._database = database
        self._rooms = rooms
        self._fanout = fanout
        self._clock = clock
        self._owned: dict[int, OwnedPartition] = {}
        self._reader: CommandReader | None = None
        self._arrivals: list[TakenPartition] = []
        self._arrived = asyncio.Event()
        self._lost: set[int] = set()
        self._log = records
        self._has_begun = False
        self.writing = asyncio.Lock()  # held while a batch is decided: no partition is handed over or begun meanwhile
        self.pump = Pump(database, records, clock)
        self.ownership = Ownership(database, owner, placed, clock, on_taken=self._on_taken, on_lost=self._on_lost)

    def __contains__(self, partition: int) -> bool:
        return partition in self._owned

    def __iter__(self) -> Iterator[int]:
        return iter(self._owned)

    @property
    def reader(self) -> CommandReader:
        """Where the commands come from."""
        assert self._reader is not None
        return self._reader

    def attach(self, reader: CommandReader) -> None:
        """Read commands here; before anything else."""
        self._reader = reader

    def find(self, partition: int) -> OwnedPartition | None:
        """A partition; None if it is not written here, or no more."""
        return self._owned.get(partition)

    def lags(self) -> list[metrics.PartitionLag]:
        """How far each partition is behind, for the metrics."""
        return [
            metrics.PartitionLag(partition, len(owned.undone), self.pump.unannounced(partition))
            for partition, owned in self._owned.items()
        ]

    def lose(self, partitions: Collection[int], reason: str) -> None:
        """Give partitions up because their state is not known; they are taken again under a new epoch."""
        self.ownership.lose(partitions, reason)

    def guard(self, owned: OwnedPartition, head: int, new_head: int, done_offset: int) -> Guard:
        """How the partition moves in a commit."""
        announced, topic_id = self.pump.announced(owned.partition), self.reader.topic_id
        return Guard(owned.partition, owned.epoch, head, new_head, announced, topic_id, done_offset)

    async def hand_over(self, partition: int, name: str) -> bool:
        """Give one partition to the living writer of that name or owner; False if it stays here."""
        if partition not in self._owned or self._reader is None:
            return False
        await self._reader.revoke(partition)
        async with self.writing:  # the batch that may hold its commands has ended
            owned = self._owned.get(partition)
            if owned is None:
                return False
            # Whatever was taken and is not done will be delivered again, to this writer or the next.
            owned = self._owned[partition] = replace(owned, undone={}, taken_offset=owned.done_offset)
            given = False
            try:
                await self._write_cursors([owned])
                async with self._database.reading() as tx:
                    given = await self.ownership.hand_over(tx, partition, name)
            finally:
                if given:
                    self._forget([partition])
                else:
                    await self._reader.assign(partition, owned.done_offset)
        return given

    async def begin_arrivals(self) -> None:
        """Run for ever: begin partitions that were taken, give up those that were lost."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._lost:
                await self.reader.revoke(self._lost.pop())
            arrivals, self._arrivals = self._arrivals, []
            ends = await self._find_ends(arrivals)
            end_offsets = await self._end_offsets(arrivals)
            for taken in arrivals:
                try:
                    if ends is None or end_offsets is None:
                        raise BusUnavailable("the topics' ends are not known")
                    await self._begin(
                        await self._above_log(taken, ends.get(taken.partition)), end_offsets[taken.partition]
                    )
                except Exception as error:  # whatever it is: the partition is taken again, and the others go on
                    log.warning("partition cannot be begun", partition=taken.partition, error=repr(error))
                    await self._clock.sleep(RETRY_SECONDS)
                    self.lose([taken.partition], "begin")

    async def finish(self) -> None:
        """Let the pump come to its end, and write down where everything stands."""
        for _ in range(SETTLE_LOOKS):
            if self.pump.is_settled():
                break
            await self._clock.sleep(SETTLE_SECONDS)
        try:
            if self._owned:
                await self._write_cursors(list(self._owned.values()))
        except (CommitUnknown, CommitRefused, DatabaseUnavailable) as error:
            log.warning("cursors not written", error=str(error))

    def _on_taken(self, taken: Sequence[TakenPartition]) -> None:
        unclean = sum(not partition.clean for partition in taken)
        metrics.TAKEN.labels("clean").inc(len(taken) - unclean)
        metrics.TAKEN.labels("unclean").inc(unclean)
        self._arrivals.extend(taken)
        self._arrived.set()

    def _on_lost(self, partitions: Collection[int], reason: str) -> None:
        metrics.LOST.labels(reason).inc(len(partitions))
        self._forget(partitions)

    def _forget(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._owned.pop(partition, None)
            self._rooms.forget_partition(partition)
            self.pump.drop_partition(partition)
            self._lost.add(partition)
        self._arrived.set()
        metrics.PARTITIONS.labels(self._shard).set(len(self._owned))

    async def _begin(self, taken: TakenPartition, end_offset: int) -> None:
        """Publish and announce what the last owner committed, then read the partition's commands."""
        partition, reader = taken.partition, self.reader
        await self._republish(taken)
        # Offsets mean nothing in a topic that was made anew or has lost its end.
        known = taken.topic_id == reader.topic_id and taken.done_offset <= end_offset
        done_offset = taken.done_offset if known else -1
        careful_until = end_offset if known and not taken.clean else -1
        async with self.writing:
            if self.ownership.epochs.get(partition) != taken.epoch:
                return  # lost meanwhile
            # A batch that was built when the partition went may have loaded rooms as somebody else then found them.
            self._rooms.forget_partition(partition)
            self._owned[partition] = OwnedPartition(
                partition,
                taken.epoch,
                taken.incarnation,
                taken.head,
                done_offset,
                careful_until,
                taken_offset=done_offset,
            )
            self.pump.add_partition(partition, taken.announced, taken.head)
        await reader.assign(partition, done_offset if known else None)
        metrics.PARTITIONS.labels(self._shard).set(len(self._owned))

    async def _find_ends(self, arrivals: Sequence[TakenPartition]) -> dict[int, LogEnd] | None:
        """Where the log ends in what was taken; None if that is not known now.

        What a living writer gave away in order is as that writer left it: only a process that begins, or takes
        from one that did not end in order, may meet a database that was restored meanwhile.
        """
        doubtful = [taken.partition for taken in arrivals if not (taken.clean and self._has_begun)]
        self._has_begun = self._has_begun or bool(arrivals)
        try:
            return await self._log.find_ends(doubtful) if doubtful else {}
        except BusUnavailable as error:
            log.warning("log's end not known", error=str(error))
            return None

    async def _end_offsets(self, arrivals: Sequence[TakenPartition]) -> dict[int, int] | None:
        """Where the commands end in what was taken; None if that is not known now.

        What may have ended the last writer of a partition lies below: it was fenced before.
        """
        try:
            return await self.reader.end_offsets([taken.partition for taken in arrivals])
        except BusUnavailable as error:
            log.warning("commands' end not known", error=str(error))
            return None

    async def _above_log(self, taken: TakenPartition, end: LogEnd | None) -> TakenPartition:
        """Invariant 15: a log ahead of its database means that the database went back in time."""
        if end is None or end <= (taken.incarnation, taken.head):
            return taken
        async with self._database.reading() as tx:
            head = await raise_incarnation(tx, taken.partition, taken.epoch, PartitionHead(*end))
        if head is None:
            raise BusUnavailable("lost meanwhile")
        metrics.REWOUND.inc()
        log.error(
            "PostgreSQL is behind room.log: it was restored or failed over with loss",
            partition=taken.partition,
            lost_records=end.position - taken.head,
            incarnation=head.incarnation,
        )
        return taken._replace(incarnation=head.incarnation, head=head.position)

    async def _republish(self, taken: TakenPartition) -> None:
        """Wake whoever may not have heard of the last owner's commits."""
        if taken.announced >= taken.head:
            return
        after = max(taken.announced, taken.head - REPUBLISHED_RECORDS)
        async with self._database.reading() as tx:
            records = await list_records(tx, taken.partition, after, taken.head, REPUBLISHED_RECORDS)
        if records:
            first, last = records[0].position, records[-1].position
            batch = PartitionBatch(taken.incarnation, taken.partition, first, last, tuple(records))
            await self._fanout.publish_batches([batch], [])

    async def _write_cursors(self, owned: Sequence[OwnedPartition]) -> None:
        """Write how far the commands are done and the records announced, as a batch without rows."""
        batch = WriterBatch([self.guard(one, one.head, one.head, one.done_offset) for one in owned])
        async with self._database.reading() as tx:
            await commit(tx, batch)
