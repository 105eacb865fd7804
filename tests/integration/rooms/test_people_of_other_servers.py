"""People of other servers in the user directory. Spec: C-S API §User Directory."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from seeded_rooms import ALICE, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import EventId, UserId
from services.gateway.users import find_people
from services.projector.people import CONSUMER, PeopleStep
from tessera.bus import LocalRecordBus
from tessera.clock import FakeClock
from tessera.config import Settings
from tessera.record_consumer import RecordConsumer
from tessera.records import RecordKind, StateBody
from tessera.remote_people import PeopleRebuilder
from tessera.storage import directory, user_rooms, users
from tessera.storage.database import Database
from tessera.storage.directory import RoomSummary
from tessera.storage.records import list_records
from tessera.storage.shards import RoomShards
from tessera.storage.user_rooms import MembershipChange

FAR, HERE, STRANGER = UserId("@erika:away.org"), UserId("@erik:here.org"), UserId("@zoe:here.org")


@pytest.fixture
async def consumer(accounts: Database, shards: RoomShards, clock: FakeClock, room: SeededRoom) -> RecordConsumer:
    async with accounts.transaction() as tx:
        for user_id, name in ((ALICE, None), (HERE, "Erik Ö"), (STRANGER, None)):
            await users.add_user(tx, user_id, password_hash=None, displayname=name, now_ms=0)
        changes = [MembershipChange(one, ROOM, "join", EventId("$m"), one, 0, 1, 1) for one in (ALICE, HERE)]
        await user_rooms.apply_changes(tx, changes)
    return RecordConsumer(CONSUMER, PeopleStep(shards, SERVER), LocalRecordBus(), accounts, shards, clock)


async def found(gateway: SimpleNamespace, user_id: UserId, term: str, **settings: bool) -> list[str]:
    configured = Settings.for_tests(server_name=SERVER, user_directory=settings)
    deps = SimpleNamespace(**{**vars(gateway), "settings": configured})
    return [user.user_id for user in await find_people(deps, user_id, term, 10)]  # type: ignore[arg-type]


async def test_who_shares_a_room_is_found_by_name_and_id(
    gateway: SimpleNamespace, room: SeededRoom, consumer: RecordConsumer
) -> None:
    await room.member(FAR, "join", displayname="ERIKA Österreich", avatar_url="mxc://a/b")
    await consumer.catch_up()
    for term in ("erika", "österreich", "ÖSTER erika", "away.org", FAR):
        assert await found(gateway, ALICE, term) == [FAR], term
    assert await found(gateway, ALICE, "eri") == [HERE, FAR]
    assert await found(gateway, ALICE, "erika österreich") == [FAR]
    assert await found(gateway, ALICE, "erik ö", prefer_local_users=True) == [HERE, FAR]
    assert await found(gateway, ALICE, "eri", exclude_remote_users=True) == [HERE]
    assert await found(gateway, STRANGER, "eri") == []
    await room.member(FAR, "leave")
    assert await found(gateway, ALICE, "erika") == []


async def test_members_of_public_rooms_are_seen_by_everybody(
    gateway: SimpleNamespace, room: SeededRoom, consumer: RecordConsumer, accounts: Database
) -> None:
    await room.member(FAR, "join", displayname=7)
    await consumer.catch_up()
    line = RoomSummary(ROOM, 1, 1, None, None, None, None, None, "public", False, False, None, "11", 2)
    async with accounts.transaction() as tx:
        await directory.set_summaries(tx, [line])
    assert await found(gateway, STRANGER, "erika") == [FAR]
    async with accounts.transaction() as tx:
        await directory.set_summaries(tx, [replace(line, position=2, join_rule="invite")])
    assert await found(gateway, STRANGER, "erika") == []


async def test_locked_users_are_shown_if_the_operator_wants_them(
    gateway: SimpleNamespace, consumer: RecordConsumer, accounts: Database
) -> None:
    await accounts.execute("UPDATE accounts.users SET locked = true WHERE user_id = $1", HERE)
    assert await found(gateway, ALICE, "erik") == []
    assert await found(gateway, ALICE, "erik", show_locked_users=True) == [HERE]


async def test_a_rebuild_finds_them_again(
    gateway: SimpleNamespace, room: SeededRoom, consumer: RecordConsumer, accounts: Database, shards: RoomShards
) -> None:
    await room.member(FAR, "join", displayname="Erika")
    await room.member(UserId("@gone:away.org"), "join")
    await room.member(UserId("@gone:away.org"), "leave")
    rebuilder = PeopleRebuilder(accounts, shards, SERVER)
    steps = [step async for step in rebuilder.rebuild([shards.partition_of(ROOM)])]
    assert [(step.rooms, step.changed) for step in steps] == [(1, 1)]
    assert await found(gateway, ALICE, "erika") == [FAR]


async def test_a_state_that_changed_as_a_whole_is_newer_than_events_before_it(
    room: SeededRoom, accounts: Database, shards: RoomShards
) -> None:
    await room.member(FAR, "join", displayname="Before")
    now = await room.member(FAR, "join", displayname="Now")
    partition = shards.partition_of(ROOM)
    async with accounts.reading() as tx:
        *_, before, after = await list_records(tx, partition, 0, 1 << 40, 100)
    resolved = replace(after, kind=RecordKind.STATE, body=StateBody((("m.room.member", FAR, now.event_id),), None, ()))
    step = PeopleStep(shards, SERVER)
    records = [before, resolved]
    prepared = await step.prepare(records)
    async with accounts.transaction() as tx:
        await step.apply(tx, records, prepared)
    assert await accounts.fetchval("SELECT displayname FROM accounts.remote_users WHERE user_id = $1", FAR) == "Now"
