"""The loop around a step that consumes room.log: read, step, cursor.

The records of a partition come in order, at least once; what the topic no longer has is read from
PostgreSQL. The cursor moves in the transaction of the step's effect; past records that mean
nothing to the step it moves in memory, and is written now and then, so that a plain message
costs the account store nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from prometheus_client import Counter

from matrixcore.identifiers import RoomId
from tessera import consumer_metrics as metrics
from tessera.bus import BusUnavailable, RecordBus, RecordReader
from tessera.clock import Clock
from tessera.records import LogRecord
from tessera.storage import consumer_cursors
from tessera.storage.consumer_cursors import BEGINNING, Cursor
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.partitions import list_heads
from tessera.storage.records import list_records
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

BATCH = 500  # records in one step
ATTEMPTS = 3  # of a step, before its rooms are tried one by one
PAUSE_SECONDS = 1.0
COMPARE_SECONDS = 30.0  # how often the cursors are compared with the heads in PostgreSQL
CURSOR_SECONDS = 5.0  # how long a cursor may lag behind in PostgreSQL
MAX_POSITION = (1 << 63) - 1

AfterCommit = Callable[[], Awaitable[None]]


class _NothingToApply:
    """See NOTHING_TO_APPLY."""


NOTHING_TO_APPLY = _NothingToApply()
"""What `Step.prepare` answers where the account store is not concerned: then the cursor moves in memory."""


class Step(Protocol):
    """What a consumer does with records."""

    def concerns(self, record: LogRecord) -> bool:
        """Whether the step has anything to do for a record."""

    async def prepare(self, records: Sequence[LogRecord]) -> object:
        """Read what other stores have to say, before the transaction.

        A step may write into another store here, if a replay changes nothing there; it answers NOTHING_TO_APPLY then,
        as it does where it has found nothing to write.
        """

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """Apply the records in a transaction of the account store; a replay must change nothing.

        Returns:
            What is to be done once it is committed.
        """


class ConsumerPaused(Exception):
    """A consumer waits for a store or a topic."""


@dataclass(slots=True)
class _Place:
    """A partition that the consumer has.

    Attributes:
        cursor: up to where records are taken; None as long as the partition is not begun.
        lag: records that it was behind PostgreSQL when the two were compared last.
        applying: held while records of the partition are taken.
    """

    cursor: Cursor | None = None
    lag: int = 0
    applying: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class RecordConsumer:
    """One consumer of room.log, for the partitions that it is given (`take_on`, `give_up`).

    Attributes:
        rebuild: makes what the step projects of a partition anew, after its database went back in time.
    """

    name: str
    step: Step
    bus: RecordBus
    accounts: Database
    shards: RoomShards
    clock: Clock
    rebuild: Callable[[int], Awaitable[None]] | None = None
    _places: dict[int, _Place] = field(default_factory=dict)
    _unwritten: dict[int, Cursor] = field(default_factory=dict)
    _reader: RecordReader | None = None
    _unsettled: asyncio.Event = field(default_factory=asyncio.Event)
    _trouble: str = ""
    _consumed: Counter = field(init=False)

    def __post_init__(self) -> None:
        self._consumed = metrics.RECORDS.labels(self.name)
        # At 0 from the beginning: Prometheus sees no increase where there was nothing.
        metrics.LEFT_OUT.labels(self.name)

    @property
    def partitions(self) -> frozenset[int]:
        """What it has."""
        return frozenset(self._places)

    def take_on(self, partitions: Iterable[int]) -> None:
        """Consume these partitions too."""
        for partition in partitions:
            self._places.setdefault(partition, _Place())
        self._unsettled.set()

    async def give_up(self, partitions: Collection[int]) -> None:
        """Consume these partitions no longer; their cursors are written, so that the next one begins there."""
        for partition in partitions:
            self._places.pop(partition, None)
            if self._reader is not None:
                await self._reader.revoke(partition)
        await self._write_cursors({p: self._unwritten.pop(p) for p in partitions if p in self._unwritten})

    async def check(self) -> None:
        """For /ready. Raises ConsumerPaused."""
        if self._trouble:
            raise ConsumerPaused(self._trouble)

    async def run(self) -> None:
        """Run for ever; a store or a topic that is away is waited for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run())
            tasks.create_task(self._write_cursors_for_ever())

    async def write_cursors(self) -> None:
        """Write the cursors that have moved in memory alone."""
        moved, self._unwritten = self._unwritten, {}
        await self._write_cursors(moved)

    async def _write_cursors(self, cursors: dict[int, Cursor]) -> None:
        if cursors:
            async with self.accounts.transaction() as tx:
                await consumer_cursors.move_cursors(tx, self.name, cursors)

    async def _write_cursors_for_ever(self) -> None:
        while True:
            await self.clock.sleep(CURSOR_SECONDS)
            try:
                await self.write_cursors()
            except DatabaseUnavailable as error:
                log.warning("cursors not written", consumer=self.name, error=str(error))

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except (BusUnavailable, DatabaseUnavailable) as error:
                self._pause(error)
                await self.clock.sleep(PAUSE_SECONDS)

    def _pause(self, error: BaseException) -> None:
        self._trouble = str(error) or type(error).__name__
        metrics.PAUSES.labels(self.name).inc()
        log.warning("consumer pauses", consumer=self.name, error=self._trouble)

    async def catch_up(self) -> None:
        """Bring every partition up to what PostgreSQL has now, without the topic: for rebuilding."""
        async with self.accounts.reading() as tx:
            cursors = await consumer_cursors.list_cursors(tx, self.name)
        for partition in range(self.shards.partitions):
            await self._catch_up(partition, cursors.get(partition, BEGINNING), MAX_POSITION)
        await self.write_cursors()

    async def _follow(self) -> None:
        reader = await self.bus.open_reader()
        self._reader = reader
        for place in self._places.values():
            place.cursor = None  # the new reader has no partition yet
        self._unsettled.set()
        settling = asyncio.create_task(self._settle_for_ever(reader))
        try:
            while True:
                by_partition: dict[int, list[LogRecord]] = {}
                for record in await reader.take(BATCH):
                    by_partition.setdefault(record.partition, []).append(record)
                for partition, records in by_partition.items():
                    await self._take_records(reader, partition, records)
        finally:
            self._reader = None
            settling.cancel()
            await asyncio.wait([settling])
            await reader.close()

    async def _take_records(self, reader: RecordReader, partition: int, records: list[LogRecord]) -> None:
        """Take what came; a partition whose stores are away is begun again later, and the others go on."""
        place = self._places.get(partition)
        if place is None:
            return
        async with place.applying:
            if place.cursor is None:
                return  # it begins with what PostgreSQL has
            try:
                place.cursor = await self._take(partition, place.cursor, records)
            except (BusUnavailable, DatabaseUnavailable) as error:
                self._pause(error)
                place.cursor = None
                await reader.revoke(partition)

    async def _settle_for_ever(self, reader: RecordReader) -> None:
        """Begin with partitions that have come, and find what the topic lost at its end, where nothing shows it."""
        while True:
            pause = COMPARE_SECONDS
            try:
                await self._settle(reader)
            except Exception as error:  # whatever it was: once more in a while
                if not isinstance(error, (BusUnavailable, DatabaseUnavailable, OSError, TimeoutError)):
                    log.exception("partitions cannot be begun", consumer=self.name)
                self._pause(error)
                pause = PAUSE_SECONDS
            if any(place.cursor is None for place in self._places.values()):
                pause = PAUSE_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._unsettled.wait()
            self._unsettled.clear()

    async def _settle(self, reader: RecordReader) -> None:
        """Bring each partition up to its head in PostgreSQL; one query a shard for the heads."""
        by_shard: dict[str, list[int]] = {}
        for partition in self._places:
            by_shard.setdefault(self.shards.shard_of(partition), []).append(partition)
        stored: dict[int, Cursor] = {}
        if any(place.cursor is None for place in self._places.values()):
            async with self.accounts.reading() as tx:
                stored = await consumer_cursors.list_cursors(tx, self.name)
        settled = await asyncio.gather(
            *(self._settle_shard(reader, shard, partitions, stored) for shard, partitions in by_shard.items())
        )
        metrics.PARTITIONS.labels(self.name).set(len(self._places))
        metrics.LAG.labels(self.name).set(sum(place.lag for place in self._places.values()))
        if all(settled):
            self._trouble = ""

    async def _settle_shard(
        self, reader: RecordReader, shard: str, partitions: Sequence[int], stored: Mapping[int, Cursor]
    ) -> bool:
        """False if the shard is away."""
        try:
            async with self.shards.databases[shard].reading() as tx:
                heads = await list_heads(tx, partitions)
            for partition in partitions:
                place = self._places.get(partition)
                if place is not None:
                    async with place.applying:
                        head = heads[partition].position if partition in heads else 0
                        await self._settle_place(reader, partition, place, stored.get(partition, BEGINNING), head)
        except DatabaseUnavailable as error:
            self._pause(error)
            return False
        return True

    async def _settle_place(
        self, reader: RecordReader, partition: int, place: _Place, stored: Cursor, head: int
    ) -> None:
        is_new = place.cursor is None
        cursor = place.cursor or stored
        place.lag = max(0, head - cursor.position)
        if cursor.position < head:
            cursor = await self._catch_up(partition, cursor, MAX_POSITION)
        if self._places.get(partition) is not place:
            return  # given up meanwhile
        if is_new:
            await reader.assign(partition, cursor.position)
        place.cursor = cursor

    async def _take(self, partition: int, cursor: Cursor, records: list[LogRecord]) -> Cursor:
        """Apply records from the topic, with what is missing before and between them."""
        new = [record for record in records if record.position > cursor.position]
        if not new:
            return cursor
        # One by one: where a record comes twice and another not at all, the number is right and the records are not.
        if any(record.position != place for place, record in enumerate(new, cursor.position + 1)):
            return await self._catch_up(partition, cursor, max(record.position for record in new))
        await self._mend(partition, cursor, new)
        return await self._apply(partition, new)

    async def _catch_up(self, partition: int, cursor: Cursor, up_to: int) -> Cursor:
        while True:
            async with self.shards.of_partition(partition).reading() as tx:
                records = await list_records(tx, partition, cursor.position, up_to, BATCH)
            if not records:
                return cursor
            await self._mend(partition, cursor, records)
            cursor = await self._apply(partition, records)

    async def _mend(self, partition: int, cursor: Cursor, records: Sequence[LogRecord]) -> None:
        """A new incarnation: records that were taken before may never have been, so all is made anew."""
        if cursor.incarnation not in (0, records[-1].incarnation) and self.rebuild is not None:
            log.warning("partition rewound, made anew", consumer=self.name, partition=partition)
            await self.rebuild(partition)

    async def _apply(self, partition: int, records: Sequence[LogRecord]) -> Cursor:
        cursor = Cursor(records[-1].incarnation, records[-1].position)
        self._consumed.inc(len(records))
        records = [record for record in records if self.step.concerns(record)]
        if not records:
            self._unwritten[partition] = cursor
            return cursor
        self._unwritten.pop(partition, None)
        for attempt in range(ATTEMPTS):
            try:
                await self._commit(partition, records, cursor)
                return cursor
            except (BusUnavailable, DatabaseUnavailable):
                raise
            except Exception:  # a record that cannot be taken must not stop the others for ever
                log.exception("step failed", consumer=self.name, partition=partition, attempt=attempt)
                await self.clock.sleep(PAUSE_SECONDS * attempt)
        await self._apply_by_room(partition, records)
        async with self.accounts.transaction() as tx:
            await consumer_cursors.move_cursor(tx, self.name, partition, cursor)
        return cursor

    async def _apply_by_room(self, partition: int, records: Sequence[LogRecord]) -> None:
        rooms: dict[RoomId, list[LogRecord]] = {}
        for record in records:
            rooms.setdefault(record.room_id, []).append(record)
        for room_id, own in rooms.items():
            try:
                await self._commit(partition, own, None)
            except (BusUnavailable, DatabaseUnavailable):
                raise
            except Exception as error:
                log.exception("room left out", consumer=self.name, partition=partition, room_id=room_id)
                metrics.LEFT_OUT.labels(self.name).inc()
                at = Cursor(own[0].incarnation, own[0].position)
                async with self.accounts.transaction() as tx:
                    await consumer_cursors.mark_stale(tx, self.name, room_id, at, repr(error))

    async def _commit(self, partition: int, records: Sequence[LogRecord], cursor: Cursor | None) -> None:
        prepared = await self.step.prepare(records)
        if prepared is NOTHING_TO_APPLY:
            if cursor is not None:
                self._unwritten[partition] = cursor
            return
        async with self.accounts.transaction() as tx:
            after_commit = await self.step.apply(tx, records, prepared)
            if cursor is not None:
                await consumer_cursors.move_cursor(tx, self.name, partition, cursor)
        if after_commit is not None:
            await after_commit()
