"""Which device lists of other servers' users can be relied on. Spec: S-S API §Device Management."""

import pytest
from seeded_rooms import ALICE, BOB, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import EventId, RoomId, UserId
from services.projector.remote_device_lists import CONSUMER, RemoteDeviceListsStep
from tessera.bus import LocalRecordBus
from tessera.clock import FakeClock
from tessera.record_consumer import NOTHING_TO_APPLY, RecordConsumer
from tessera.records import LogRecord, RecordKind, StateBody
from tessera.storage import remote_devices
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

FAR, AWAY, UNKNOWN = UserId("@erika:away.org"), UserId("@emil:away.org"), UserId("@nobody:away.org")


@pytest.fixture
async def rooms(accounts: Database, shards: RoomShards, room: SeededRoom) -> tuple[SeededRoom, SeededRoom]:
    """Two rooms of Alice's with two users of another server, whose lists are kept."""
    other = await SeededRoom(accounts, RoomId("!other:here.org")).create()
    assert shards.partition_of(room.room_id) != shards.partition_of(other.room_id)
    for one in (room, other):
        await set_ours(accounts, one, 1)
        for user_id in (FAR, AWAY, UNKNOWN):
            await one.member(user_id, "join")
    async with accounts.transaction() as tx:
        await remote_devices.ask_for(tx, [FAR, AWAY])
    await know(accounts)
    return room, other


@pytest.fixture
def step(accounts: Database, shards: RoomShards) -> RemoteDeviceListsStep:
    return RemoteDeviceListsStep(accounts, shards, SERVER)


@pytest.fixture
def consumer(step: RemoteDeviceListsStep, accounts: Database, shards: RoomShards, clock: FakeClock) -> RecordConsumer:
    return RecordConsumer(CONSUMER, step, LocalRecordBus(), accounts, shards, clock)


async def set_ours(accounts: Database, room: SeededRoom, count: int) -> None:
    """How many users of this server are in the room."""
    await accounts.execute(
        "INSERT INTO rooms.room_servers (room_id, server_name, joined_count) VALUES ($1, $2, $3)"
        " ON CONFLICT (room_id, server_name) DO UPDATE SET joined_count = EXCLUDED.joined_count",
        room.room_id,
        SERVER,
        count,
    )


async def know(accounts: Database) -> None:
    """All lists that are kept are complete."""
    await accounts.execute("UPDATE accounts.remote_device_lists SET stale = false, ask_at = now() + interval '1 day'")


async def stale(accounts: Database) -> list[UserId]:
    """The users whose lists are stale, and asked for at once."""
    rows = await accounts.fetch(
        "SELECT user_id FROM accounts.remote_device_lists WHERE stale AND ask_at <= now() ORDER BY 1"
    )
    return [row[0] for row in rows]


async def test_a_list_is_stale_once_the_last_shared_room_is_left(
    rooms: tuple[SeededRoom, SeededRoom], consumer: RecordConsumer, accounts: Database
) -> None:
    room, other = rooms
    await room.member(FAR, "leave")
    await room.member(UNKNOWN, "leave")
    await consumer.catch_up()
    assert await stale(accounts) == []
    await other.member(FAR, "ban", sender=ALICE)
    await other.member(UNKNOWN, "leave")
    await consumer.catch_up()
    assert await stale(accounts) == [FAR]
    async with accounts.reading() as tx:
        assert sorted(await remote_devices.list_kept(tx, [FAR, AWAY, UNKNOWN])) == [AWAY, FAR]


async def test_who_came_back_at_once_was_away_all_the_same(
    rooms: tuple[SeededRoom, SeededRoom], consumer: RecordConsumer, accounts: Database
) -> None:
    room, other = rooms
    await other.member(FAR, "leave")
    await consumer.catch_up()
    assert await stale(accounts) == []
    await room.member(FAR, "leave")
    await room.member(FAR, "join")
    await consumer.catch_up()
    assert await stale(accounts) == [FAR]


async def test_the_lists_of_a_room_are_stale_once_the_last_of_us_has_left(
    rooms: tuple[SeededRoom, SeededRoom], consumer: RecordConsumer, accounts: Database
) -> None:
    room, other = rooms
    await other.member(FAR, "leave")
    await room.member(BOB, "join")
    await room.member(BOB, "leave")
    await consumer.catch_up()
    assert await stale(accounts) == []
    await room.member(ALICE, "leave")
    await set_ours(accounts, room, 0)
    await consumer.catch_up()
    assert await stale(accounts) == [FAR], "the other one is still in the other room"


async def test_a_membership_that_a_resolution_took_away_counts(
    rooms: tuple[SeededRoom, SeededRoom], step: RemoteDeviceListsStep
) -> None:
    _, other = rooms
    await other.member(FAR, "leave")

    def record(*changes: tuple[str, str, EventId | None]) -> LogRecord:
        return LogRecord(1, 0, 99, ROOM, 98, RecordKind.STATE, StateBody(changes))

    lost = record(("m.room.member", FAR, None), ("m.room.member", AWAY, None))
    assert step.concerns(lost)
    assert await step.prepare([lost]) == [FAR]
    assert not step.concerns(record(("m.room.topic", "", None)))
    assert await step.prepare([record(("m.room.member", UNKNOWN, None))]) is NOTHING_TO_APPLY
