"""The projector's steps on PostgreSQL. DESIGN sections 2.12 and 5; STYLE §Consumers."""

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY
from seeded_rooms import ALICE, BOB, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import EventId, UserId
from services.projector import directory as directory_step
from services.projector.directory import DirectoryStep
from services.projector.memberships import CONSUMER, MembershipStep
from tessera.bus import LocalRecordBus
from tessera.clock import FakeClock
from tessera.fanout import LocalFanout
from tessera.record_consumer import RecordConsumer
from tessera.records import LogRecord, RecordKind, StateBody, StateMembership
from tessera.storage import consumer_cursors, directory, user_log, user_rooms
from tessera.storage.consumer_cursors import Cursor
from tessera.storage.database import Database, Transaction
from tessera.storage.records import list_records
from tessera.storage.shards import RoomShards


@pytest.fixture
def bus() -> LocalRecordBus:
    return LocalRecordBus()


@pytest.fixture
def memberships(accounts: Database, shards: RoomShards, bus: LocalRecordBus, clock: FakeClock) -> RecordConsumer:
    return RecordConsumer(CONSUMER, MembershipStep(LocalFanout(), SERVER), bus, accounts, shards, clock)


async def rooms_of(accounts: Database, user_id: UserId) -> list[tuple[str, int]]:
    async with accounts.reading() as tx:
        return [(row.membership, row.position) for row in await user_rooms.list_rooms(tx, user_id)]


async def logged(accounts: Database, user_id: UserId) -> int:
    async with accounts.reading() as tx:
        return await user_log.find_head(tx, user_id)


async def cursor_of(accounts: Database, consumer: str, partition: int) -> Cursor | None:
    async with accounts.reading() as tx:
        return (await consumer_cursors.list_cursors(tx, consumer)).get(partition)


async def test_memberships_are_projected_once(
    memberships: RecordConsumer, room: SeededRoom, accounts: Database, shards: RoomShards
) -> None:
    await room.member(BOB, "join")
    await room.member(UserId("@far:away.org"), "join")
    await memberships.catch_up()
    assert await rooms_of(accounts, BOB) == [("join", 3)]
    assert await rooms_of(accounts, UserId("@far:away.org")) == []
    assert await cursor_of(accounts, CONSUMER, shards.partition_of(ROOM)) == Cursor(1, 4)
    await memberships.catch_up()
    await accounts.execute("DELETE FROM accounts.consumer_cursors")
    await memberships.catch_up()
    assert await logged(accounts, BOB) == 1


async def test_memberships_that_a_resolution_changed_are_projected(
    memberships: RecordConsumer, room: SeededRoom, accounts: Database, shards: RoomShards, bus: LocalRecordBus
) -> None:
    await room.member(BOB, "join")
    memberships.take_on(range(shards.partitions))
    running = asyncio.create_task(memberships.run())
    partition = shards.partition_of(ROOM)
    try:
        await eventually(lambda: rooms_of(accounts, BOB), [("join", 3)])
        gone = StateMembership(BOB, "leave", EventId("$joined"), BOB)
        changed = StateBody((("m.room.member", BOB, None),), None, (gone,))
        nobody = StateBody((("m.room.topic", "", None),))
        records = [
            LogRecord(1, partition, position, ROOM, position - 1, RecordKind.STATE, body)
            for position, body in ((4, changed), (5, nobody))
        ]
        assert [memberships.step.concerns(record) for record in records] == [True, False]
        await bus.announce(partition, records)
        await eventually(lambda: rooms_of(accounts, BOB), [("leave", 4)])
    finally:
        running.cancel()


@pytest.mark.parametrize("times", [1, 2])  # twice, and the number of records is right
async def test_what_the_topic_lost_comes_from_postgresql(
    times: int,
    memberships: RecordConsumer,
    room: SeededRoom,
    accounts: Database,
    shards: RoomShards,
    bus: LocalRecordBus,
) -> None:
    memberships.take_on(range(shards.partitions))
    running = asyncio.create_task(memberships.run())
    partition = shards.partition_of(ROOM)
    try:
        await eventually(lambda: cursor_of(accounts, CONSUMER, partition), Cursor(1, 2))
        await eventually(lambda: figures("tessera_consumer_partitions", "tessera_consumer_lag_records"), (64, 2))
        await room.member(BOB, "join")
        await room.member(BOB, "leave")
        async with accounts.reading() as tx:
            (_, last) = await list_records(tx, partition, 2, 99, 10)
        await bus.announce(partition, [last] * times)  # the record before it never reached the topic
        await eventually(lambda: rooms_of(accounts, BOB), [("leave", 4)])
        assert await logged(accounts, BOB) == 2
    finally:
        running.cancel()


def figure(name: str) -> float:
    """What Prometheus would read of this consumer; 0 if there is nothing yet."""
    return REGISTRY.get_sample_value(name, {"consumer": CONSUMER}) or 0


async def figures(*names: str) -> tuple[float, ...]:
    await asyncio.sleep(0)
    return tuple(figure(name) for name in names)


async def eventually(read, expected: object) -> None:  # type: ignore[no-untyped-def]
    """Ask until it is so; the consumer runs beside the test."""
    async with asyncio.timeout(20):
        while await read() != expected:
            pass


class Stumbling(MembershipStep):
    """Cannot take one room."""

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> None:
        if any(record.room_id == ROOM for record in records):
            raise ValueError("broken room")


async def test_a_room_that_cannot_be_taken_does_not_stop_the_others(
    room: SeededRoom, accounts: Database, shards: RoomShards, bus: LocalRecordBus, clock: FakeClock
) -> None:
    left_out = figure("tessera_consumer_rooms_left_out_total")
    consumer = RecordConsumer(CONSUMER, Stumbling(LocalFanout(), SERVER), bus, accounts, shards, clock)
    running = asyncio.create_task(consumer.catch_up())
    async with asyncio.timeout(20):
        while not running.done():
            await clock.advance(1)
            await asyncio.wait({running}, timeout=0.01)
    await running
    rows = await accounts.fetch("SELECT room_id, position, error FROM accounts.stale_rooms")
    assert [tuple(row) for row in rows] == [
        (ROOM, 2, "ValueError('broken room')")
    ]  # the first that means anything to the step
    assert await cursor_of(accounts, CONSUMER, shards.partition_of(ROOM)) == Cursor(1, 2)
    assert figure("tessera_consumer_rooms_left_out_total") == left_out + 1


async def test_the_directory_follows_the_room(
    room: SeededRoom, accounts: Database, shards: RoomShards, bus: LocalRecordBus, clock: FakeClock
) -> None:
    consumer = RecordConsumer(directory_step.CONSUMER, DirectoryStep(shards), bus, accounts, shards, clock)
    await room.add("m.room.name", ALICE, {"name": "Pub"}, state_key="")
    await room.add("m.room.topic", ALICE, {"topic": ["no text"]}, state_key="")
    await room.add("m.room.join_rules", ALICE, {"join_rule": "public"}, state_key="")
    await consumer.catch_up()
    async with accounts.transaction() as tx:
        await directory.set_published(tx, ROOM, True)
        (line,) = await directory.list_published(tx, limit=10)
    assert (line.name, line.topic, line.join_rule, line.joined_members) == ("Pub", None, "public", 1)
    await room.member(BOB, "join")
    await consumer.catch_up()
    async with accounts.reading() as tx:
        (line,) = await directory.list_published(tx, limit=10)
    assert line.joined_members == 2
