"""Following partitions: their last contiguous heads, and every record into the tails exactly once.

The channels lose, repeat and reorder; arithmetic on the dense positions finds it, and what is missing is read from
PostgreSQL before the head moves on. So a head here never claims a record that the tails did not see.

Spec: DESIGN.md sections 2 (2, 6) and 5.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable

import structlog

from services.sync import metrics
from services.sync.room_tails import RoomTail, RoomTails
from tessera.clock import Clock
from tessera.fanout import Subscription
from tessera.records import LogRecord, PartitionBatch
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.records import list_records
from tessera.storage.shards import RoomShards
from tessera.storage.sync_reads import list_heads
from tessera.sync_token import Point

log = structlog.get_logger(__name__)

MAX_REPAIRED_RECORDS = 2_000  # a longer hole empties the partition's tails instead
RETRY_SECONDS = 1.0


class PartitionFeed:
    """The partitions that users here have rooms in.

    `on_records` is told each record of a tail with its tail, before anybody is woken; `on_advance` the tails that
    got records or lost them.
    """

    def __init__(
        self,
        shards: RoomShards,
        tails: RoomTails,
        clock: Clock,
        on_record: Callable[[RoomTail, LogRecord], None],
        on_advance: Callable[[Collection[RoomTail]], None],
    ) -> None:
        self.heads: dict[int, Point] = {}
        self._shards = shards
        self._tails = tails
        self._clock = clock
        self._on_record = on_record
        self._on_advance = on_advance
        self._subscription: Subscription | None = None
        self._followed: set[int] = set()
        self._following = asyncio.Lock()
        self._early: dict[int, int] = {}  # partitions without a head yet: the last position heard of
        self._holes: set[int] = set()
        self._in_doubt: set[int] = set()
        self._hole_found = asyncio.Event()

    def attach(self, subscription: Subscription) -> None:
        """Use this place on the fan-out; before anything else."""
        self._subscription = subscription

    async def follow(self, partitions: Collection[int]) -> None:
        """Follow these partitions too; their heads are known when this returns.

        Raises:
            DatabaseUnavailable
        """
        if self.heads.keys() >= set(partitions):
            return
        async with self._following:
            new = set(partitions) - self.heads.keys()
            if not new:
                return
            assert self._subscription is not None
            self._followed |= new
            await self._subscription.follow_partitions(self._followed)
            for partition, head in (await self._read_heads(new)).items():
                self.heads[partition] = head
                if self._early.pop(partition, 0) > head.position:
                    self._find_hole(partition)

    def on_batch(self, batch: PartitionBatch) -> None:
        """Take a batch from the partition's channel."""
        partition = batch.partition
        head = self.heads.get(partition)
        if head is None:
            self._early[partition] = max(batch.last, self._early.get(partition, 0))
            return
        if batch.incarnation == head.incarnation and batch.first <= head.position + 1:
            if batch.last > head.position:
                self._advance(partition, batch.incarnation, batch.last, batch.records)
            return
        metrics.HOLES.inc()
        self._find_hole(partition)

    def on_reset(self) -> None:
        """Hints may have been lost: compare all heads."""
        self._in_doubt |= self.heads.keys()
        for partition in self._followed:
            self._find_hole(partition)

    @property
    def is_in_doubt(self) -> bool:
        """Whether heads must be read again, after a reset, before anything is answered from memory."""
        return bool(self._in_doubt)

    async def list_behind(self) -> list[int]:
        """The partitions in which PostgreSQL is ahead of what came over the channels; a shard that is away has none."""
        heads = await self._read_known_heads(self.heads.keys())
        return [partition for partition, head in heads.items() if head > self.heads[partition]]

    def mend(self, partitions: Iterable[int]) -> None:
        """Have these partitions repaired soon."""
        for partition in partitions:
            self._find_hole(partition)

    async def run_repairs(self) -> None:
        """Run for ever: read from PostgreSQL what the channels did not bring."""
        while True:
            await self._hole_found.wait()
            self._hole_found.clear()
            holes, self._holes = self._holes, set()
            try:
                away = await self.repair(holes)
                if away:
                    await self._clock.sleep(RETRY_SECONDS)
                    self.mend(away)
            except Exception as error:  # the holes stay until they are mended, whatever it was
                known = isinstance(error, DatabaseUnavailable)
                log.warning("missed records are not readable now", partitions=len(holes), exc_info=not known)
                self._holes |= holes
                self._hole_found.set()
                await self._clock.sleep(RETRY_SECONDS)

    async def repair(self, partitions: Collection[int]) -> set[int]:
        """Bring these partitions up to PostgreSQL's heads; those of shards that are away stay as they are.

        Returns:
            The partitions that could not be looked at.
        """
        heads = await self._read_known_heads(partitions)
        for partition, head in heads.items():
            known = self.heads.get(partition)
            if known is None or head <= known:
                self._in_doubt.discard(partition)
                continue
            missing = head.position - known.position
            if head.incarnation != known.incarnation or missing > MAX_REPAIRED_RECORDS:
                self._begin_anew(partition, head)
                self._in_doubt.discard(partition)
                continue
            async with self._shards.of_partition(partition).reading() as tx:
                records = await list_records(tx, partition, known.position, head.position, MAX_REPAIRED_RECORDS)
            if self.heads[partition].incarnation == head.incarnation:
                self._advance(partition, head.incarnation, head.position, records)
            self._in_doubt.discard(partition)
        return set(partitions) - heads.keys()

    def _advance(self, partition: int, incarnation: int, last: int, records: Iterable[LogRecord]) -> None:
        known = self.heads[partition].position
        touched: dict[RoomTail, None] = {}
        for record in records:
            if record.position <= known:
                continue
            tail = self._tails.append(record)
            if tail is not None:
                self._on_record(tail, record)
                touched[tail] = None
        self.heads[partition] = Point(incarnation, max(known, last))
        if touched:
            self._on_advance(touched.keys())

    def _begin_anew(self, partition: int, head: Point) -> None:
        self.heads[partition] = head
        self._on_advance(self._tails.forget_partition(partition, head.position))

    def _find_hole(self, partition: int) -> None:
        self._holes.add(partition)
        self._hole_found.set()

    async def _read_heads(self, partitions: Collection[int]) -> dict[int, Point]:
        """The heads of all these partitions. Raises DatabaseUnavailable."""
        heads: dict[int, Point] = {}
        for shard, group in self._by_shard(partitions).items():  # one query a shard
            heads |= await self._read_shard(shard, group)
        return heads

    async def _read_known_heads(self, partitions: Collection[int]) -> dict[int, Point]:
        """The heads in those shards that answer: one that is away holds up no other."""
        try:
            groups = self._by_shard(partitions)
        except DatabaseUnavailable:
            return {}
        answers = await asyncio.gather(
            *(self._read_shard(shard, group) for shard, group in groups.items()), return_exceptions=True
        )
        heads: dict[int, Point] = {}
        for shard, answer in zip(groups, answers, strict=True):
            if not isinstance(answer, BaseException):
                heads |= answer
                continue
            if not isinstance(answer, DatabaseUnavailable | OSError | TimeoutError):
                raise answer
            log.warning("heads are not readable now", shard=shard)
        return heads

    def _by_shard(self, partitions: Collection[int]) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for partition in partitions:
            groups.setdefault(self._shards.shard_of(partition), []).append(partition)
        return groups

    async def _read_shard(self, shard: str, partitions: Collection[int]) -> dict[int, Point]:
        async with self._shards.databases[shard].reading() as tx:
            heads = await list_heads(tx, partitions)
        # A partition that nobody has written to yet may have no row.
        return {partition: heads.get(partition, Point(1, 0)) for partition in partitions}
