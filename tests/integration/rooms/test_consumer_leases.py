"""How processes share the partitions of room.log. DESIGN section 2, invariant 1."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from seeded_rooms import ALICE, ROOM, SeededRoom

from tessera.bus import LocalRecordBus
from tessera.clock import SystemClock
from tessera.consumer_leases import ConsumerLeases
from tessera.record_consumer import AfterCommit, ConsumerPaused, RecordConsumer
from tessera.records import LogRecord
from tessera.storage import consumer_cursors
from tessera.storage.database import Database, Transaction
from tessera.storage.shards import RoomShards

NAMES = ("one", "two")


@dataclass
class Noting:
    """Notes the positions that it is given."""

    seen: list[int] = field(default_factory=list)

    def concerns(self, record: LogRecord) -> bool:
        return True

    async def prepare(self, records: Sequence[LogRecord]) -> None: ...

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        self.seen += [record.position for record in records]
        return None


@dataclass
class Process:
    """A process with two consumers."""

    consumers: list[RecordConsumer]
    leases: ConsumerLeases
    steps: list[Noting]
    tasks: list[asyncio.Task[None]]

    def counts(self) -> list[int]:
        return [len(consumer.partitions) for consumer in self.consumers]

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


@asynccontextmanager
async def process(owner: str, accounts: Database, shards: RoomShards, bus: LocalRecordBus) -> AsyncIterator[Process]:
    clock = SystemClock()
    steps = [Noting() for _ in NAMES]
    consumers = [
        RecordConsumer(name, step, bus, accounts, shards, clock) for name, step in zip(NAMES, steps, strict=True)
    ]
    leases = ConsumerLeases(accounts, clock, owner, consumers, shards.partitions)
    tasks = [asyncio.create_task(run()) for run in (*(consumer.run for consumer in consumers), leases.run)]
    running = Process(consumers, leases, steps, tasks)
    try:
        yield running
    finally:
        await running.kill()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- the leases themselves are looked at once a second
            await asyncio.sleep(0.01)


async def settled(accounts: Database, partition: int) -> int:
    async with accounts.reading() as tx:
        cursors = await consumer_cursors.list_cursors(tx, "one")
    return cursors[partition].position if partition in cursors else 0


async def eventually(read: Callable[[], Awaitable[int]], expected: int) -> None:
    async with asyncio.timeout(20):
        while await read() != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_processes_share_and_the_dead_are_followed(
    room: SeededRoom, accounts: Database, shards: RoomShards
) -> None:
    bus, partition, total = LocalRecordBus(), shards.partition_of(ROOM), shards.partitions
    async with process("a", accounts, shards, bus) as first:
        await until(lambda: first.counts() == [total, total])
        await eventually(lambda: settled(accounts, partition), 2)
        async with process("b", accounts, shards, bus) as second:
            await until(lambda: first.counts() == [total // 2] * 2 == second.counts())
            assert not first.consumers[0].partitions & second.consumers[0].partitions
            # Whoever has the room's partition goes on where the cursor is.
            await room.add("m.room.name", ALICE, {"name": "x"}, state_key="")
            await first.kill()
            assert second.counts() == [total // 2] * 2
            await accounts.execute("UPDATE accounts.consumer_owners SET expires_at = now() WHERE owner = 'a'")
            await until(lambda: second.counts() == [total, total])
            await eventually(lambda: settled(accounts, partition), 3)
            assert first.steps[0].seen + second.steps[0].seen == [1, 2, 3]
            await second.leases.stop()
            assert second.counts() == [0, 0]
        assert await accounts.fetchval("SELECT count(*) FROM accounts.consumer_leases WHERE owner <> ''") == 0
        assert await accounts.fetchval("SELECT count(*) FROM accounts.consumer_owners WHERE owner = 'b'") == 0


async def test_a_shard_that_is_away_holds_up_its_own_partitions_only(
    any_shards: RoomShards, accounts: Database
) -> None:
    bus = LocalRecordBus()
    step = Noting()
    consumer = RecordConsumer("one", step, bus, accounts, any_shards, SystemClock())
    consumer.take_on(range(any_shards.partitions))
    there, *others = any_shards.names
    away = others[0] if others else there
    await any_shards.databases[away].close()
    running = asyncio.create_task(consumer.run())
    try:
        first = any_shards.partitions_of(there)[0]
        if others:
            await until(lambda: consumer._places[first].cursor is not None)
        await until(lambda: bool(consumer._trouble))
        assert consumer._places[any_shards.partitions_of(away)[0]].cursor is None
        with pytest.raises(ConsumerPaused):
            await consumer.check()
    finally:
        running.cancel()
        await asyncio.wait([running])
