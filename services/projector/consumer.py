"""The loop around a step that consumes room.log: read, step, cursor.

The records of a partition come in order, at least once; what the topic no longer has is read from
PostgreSQL. The cursor moves in the transaction of the step's effect; past records that mean
nothing to the step it moves in memory, and is written now and then, so that a plain message
costs the account store nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from matrixcore.identifiers import RoomId
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


class Step(Protocol):
    """What a consumer does with records."""

    def concerns(self, record: LogRecord) -> bool:
        """Whether the step has anything to do for a record."""

    async def prepare(self, records: Sequence[LogRecord]) -> object:
        """Read what other stores have to say, before the transaction."""

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """Apply the records in a transaction of the account store; a replay must change nothing.

        Returns:
            What is to be done once it is committed.
        """


@dataclass(slots=True)
class RecordConsumer:
    """One consumer of all partitions of room.log."""

    name: str
    step: Step
    bus: RecordBus
    accounts: Database
    shards: RoomShards
    clock: Clock
    _unwritten: dict[int, Cursor] = field(default_factory=dict)

    async def run(self) -> None:
        """Run for ever; a store or a topic that is away is waited for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run())
            tasks.create_task(self._write_cursors_for_ever())

    async def write_cursors(self) -> None:
        """Write the cursors that have moved in memory alone."""
        if not self._unwritten:
            return
        moved, self._unwritten = self._unwritten, {}
        async with self.accounts.transaction() as tx:
            await consumer_cursors.move_cursors(tx, self.name, moved)

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
                log.warning("consumer pauses", consumer=self.name, error=str(error))
                await self.clock.sleep(PAUSE_SECONDS)

    async def catch_up(self) -> None:
        """Bring every partition up to what PostgreSQL has now, without the topic: at start, and for rebuilding."""
        async with self.accounts.reading() as tx:
            cursors = await consumer_cursors.list_cursors(tx, self.name)
        for partition in range(self.shards.partitions):
            await self._catch_up(partition, cursors.get(partition, BEGINNING), MAX_POSITION)
        await self.write_cursors()

    async def _follow(self) -> None:
        async with self.accounts.reading() as tx:
            stored = await consumer_cursors.list_cursors(tx, self.name)
        cursors: dict[int, Cursor] = {}
        reader: RecordReader = await self.bus.open_reader()
        try:
            for partition in range(self.shards.partitions):
                cursor = await self._catch_up(partition, stored.get(partition, BEGINNING), MAX_POSITION)
                cursors[partition] = cursor
                await reader.assign(partition, cursor.position)
            compared = self.clock.monotonic()
            while True:
                for partition, records in (await self._next_records(reader)).items():
                    cursors[partition] = await self._take(partition, cursors[partition], records)
                if self.clock.monotonic() - compared >= COMPARE_SECONDS:
                    await self._compare(cursors)
                    compared = self.clock.monotonic()
        finally:
            await reader.close()

    async def _next_records(self, reader: RecordReader) -> dict[int, list[LogRecord]]:
        """What comes next, by partition; nothing if nothing comes for a while."""
        by_partition: dict[int, list[LogRecord]] = {}
        try:
            async with asyncio.timeout(COMPARE_SECONDS):
                taken = await reader.take(BATCH)
        except TimeoutError:
            return by_partition
        for record in taken:
            by_partition.setdefault(record.partition, []).append(record)
        return by_partition

    async def _compare(self, cursors: dict[int, Cursor]) -> None:
        """Find what the topic lost at its end, where no later record shows the hole; one query a shard."""
        by_shard: dict[str, list[int]] = {}
        for partition in cursors:
            by_shard.setdefault(self.shards.shard_of(partition), []).append(partition)
        for shard, partitions in by_shard.items():
            async with self.shards.databases[shard].reading() as tx:
                heads = await list_heads(tx, partitions)
            for partition, head in heads.items():
                if head.position > cursors[partition].position:
                    cursors[partition] = await self._catch_up(partition, cursors[partition], head.position)

    async def _take(self, partition: int, cursor: Cursor, records: list[LogRecord]) -> Cursor:
        """Apply records from the topic, with what is missing before and between them."""
        new = [record for record in records if record.position > cursor.position]
        if not new:
            return cursor
        dense = new[-1].position - cursor.position == len(new)
        if not dense:
            return await self._catch_up(partition, cursor, new[-1].position)
        return await self._apply(partition, new)

    async def _catch_up(self, partition: int, cursor: Cursor, up_to: int) -> Cursor:
        while True:
            async with self.shards.of_partition(partition).reading() as tx:
                records = await list_records(tx, partition, cursor.position, up_to, BATCH)
            if not records:
                return cursor
            cursor = await self._apply(partition, records)

    async def _apply(self, partition: int, records: Sequence[LogRecord]) -> Cursor:
        cursor = Cursor(records[-1].incarnation, records[-1].position)
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
                at = Cursor(own[0].incarnation, own[0].position)
                async with self.accounts.transaction() as tx:
                    await consumer_cursors.mark_stale(tx, self.name, room_id, at, repr(error))

    async def _commit(self, partition: int, records: Sequence[LogRecord], cursor: Cursor | None) -> None:
        prepared = await self.step.prepare(records)
        async with self.accounts.transaction() as tx:
            after_commit = await self.step.apply(tx, records, prepared)
            if cursor is not None:
                await consumer_cursors.move_cursor(tx, self.name, partition, cursor)
        if after_commit is not None:
            await after_commit()
