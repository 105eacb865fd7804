"""Entering rooms of other servers through the real writer, and memberships in rooms that are elsewhere."""

import orjson
import pytest
from writer_world import ALICE, BOB, KEY, NOW_MS, SERVER, World, message

from matrixcore.events import Event
from matrixcore.identifiers import RoomId, UserId
from tessera.commands import Append, EnterRoom, NewEvent, NoteMembership, OutcomeStatus, ReceivePdus
from tessera.records import EventBody, RecordKind, StateBody, encode_record
from tessera.storage import inbox, joins
from tessera.storage.inbox import NewInboxRow
from tessera.storage.joins import Join, StagedEvent
from tessera.storage.room_reads.events import find_event
from tessera.storage.state_loading import load_current_state
from tessera.storage.verification import list_broken_chains, list_wrong_state
from tests.fixtures.foreign_room import FAR, FAY, ForeignRoom

GUS = UserId(f"@gus:{FAR}")


def row_of(event: Event, *, is_state: bool = True) -> StagedEvent:
    return StagedEvent(
        event.event_id,
        event.type,
        event.state_key,
        event.sender,
        event.membership,
        event.depth,
        event.origin_server_ts,
        " ".join(event.auth_events),
        event.pdu,
        is_state,
    )


async def stage(world: World, room: ForeignRoom, join: Event, join_id: str = "j1") -> Join:
    """A join as it is when everything has come."""
    partition = world.shards.partition_of(room.room_id)
    made = Join(join_id, partition, room.room_id, join.sender, room.version, join.event_id, join.pdu, [FAR], "sending")
    async with world.shards.of_room(room.room_id).transaction() as tx:
        assert await joins.add(tx, made, "test", 60)
        await joins.add_events(tx, join_id, [row_of(event) for event in room.state.values()])
        await joins.add_events(
            tx, join_id, [row_of(e, is_state=False) for e in room.auth_chain([*room.state.values()])]
        )
        await joins.set_staged(tx, join_id)
    return made


def join_of(room: ForeignRoom, user_id: UserId, **content: object) -> Event:
    return room.make(
        "m.room.member",
        {"membership": "join", **content},
        sender=user_id,
        state_key=user_id,
        server=SERVER,
        key=KEY,
    )


async def check_stored(world: World, room_id: RoomId) -> None:
    """Records as published, chains unbroken, state as its history has it."""
    published, stored = world.published_records(), await world.stored_records()
    for partition, records in stored.items():
        assert [record.position for record in records] == list(range(1, len(records) + 1))
        assert [encode_record(r) for r in records] == [encode_record(r) for r in published[partition]]
    async with world.shards.of_room(room_id).reading() as tx:
        assert await list_broken_chains(tx, [room_id]) == []
        assert await list_wrong_state(tx, [room_id]) == []


@pytest.mark.parametrize("version", ["1", "2", "6", "10", "11", "12"])
async def test_a_room_is_entered(any_world: World, version: str) -> None:
    world, room = any_world, ForeignRoom(version)
    room.send("m.room.member", {"membership": "join"}, sender=GUS, state_key=GUS)
    room.send("m.room.member", {"membership": "invite"}, sender=FAY, state_key=BOB)
    async with world.writer():
        join = join_of(room, ALICE)
        await stage(world, room, join)
        outcome = await world.accepted(room.room_id, EnterRoom("j1"))
        assert outcome.event_ids == (join.event_id,)
        assert {(d.user_id, d.membership) for d in outcome.memberships} == {(ALICE, "join"), (BOB, "invite")}
        async with world.shards.of_room(room.room_id).reading() as tx:
            state = await load_current_state(tx, room.room_id)
        room.add(join)
        assert state == {key: event.event_id for key, event in room.state.items()}
        query = "SELECT joined_count, invited_count, forward_extremities, room_version FROM rooms.rooms"
        (row,) = await world.shards.of_room(room.room_id).fetch(query)
        assert tuple(row) == (3, 1, [join.event_id], version)
        records = [r for rs in (await world.stored_records()).values() for r in rs if r.room_id == room.room_id]
        assert [r.kind for r in records] == [RecordKind.STATE, RecordKind.EVENT]
        assert isinstance(records[0].body, StateBody)
        assert records[0].body.staged == "j1"
        (bob,) = records[0].body.memberships
        assert {one["type"] for one in orjson.loads(bob.stripped_state or b"[]")} >= {"m.room.create", "m.room.member"}
        assert records[1].event.servers == ()  # the resident server tells the others
        sent = await world.accepted(room.room_id, message())
        async with world.shards.of_room(room.room_id).reading() as tx:
            assert await find_event(tx, room.room_id, sent.event_ids[0]) is not None
        newest = max((r for rs in (await world.stored_records()).values() for r in rs), key=lambda r: r.position)
        assert isinstance(newest.body, EventBody)
        assert newest.body.servers == (FAR,)
    await check_stored(world, room.room_id)


async def test_a_room_is_entered_again_as_it_is_now(world: World) -> None:
    room = ForeignRoom()
    room.send("m.room.topic", {"topic": "old"}, sender=FAY, state_key="")
    async with world.writer():
        join = room.add(join_of(room, ALICE))
        del room.state[join.state_tuple]
        await stage(world, room, join)
        await world.accepted(room.room_id, EnterRoom("j1"))
        leave = Append(NewEvent("m.room.member", ALICE, {"membership": "leave"}))
        await world.accepted(room.room_id, leave)
        refused = await world.submit(world.command(room.room_id, message()))  # nobody of ours is there
        assert (refused.http_status, refused.errcode) == (404, "M_NOT_FOUND")
        # Meanwhile there: Gus has come, the topic is gone, the name is new.
        room.send("m.room.member", {"membership": "join"}, sender=GUS, state_key=GUS)
        room.send("m.room.name", {"name": "new"}, sender=FAY, state_key="")
        del room.state["m.room.topic", ""]
        again = join_of(room, BOB)
        await stage(world, room, again, "j2")
        await world.accepted(room.room_id, EnterRoom("j2"), BOB)
        room.add(again)
        async with world.shards.of_room(room.room_id).reading() as tx:
            state = await load_current_state(tx, room.room_id)
        assert state == {key: event.event_id for key, event in room.state.items()}
        servers = await world.shards.of_room(room.room_id).fetch(
            "SELECT server_name, joined_count FROM rooms.room_servers ORDER BY 1"
        )
        assert [tuple(row) for row in servers] == [(FAR, 2), (SERVER, 1)]
        await world.accepted(room.room_id, message(), BOB)
    await check_stored(world, room.room_id)


async def test_a_join_that_the_state_does_not_allow_is_refused(world: World) -> None:
    room = ForeignRoom()
    join = join_of(room, ALICE)
    room.send("m.room.member", {"membership": "ban"}, sender=FAY, state_key=ALICE)
    async with world.writer():
        await stage(world, room, join)
        outcome = await world.submit(world.command(room.room_id, EnterRoom("j1")))
        assert (outcome.status, outcome.http_status) == (OutcomeStatus.REFUSED, 403)
        nothing = await world.submit(world.command(room.room_id, EnterRoom("j2")))
        assert (nothing.status, nothing.errcode) == (OutcomeStatus.REFUSED, "M_BAD_STATE")
        assert await world.shards.of_room(room.room_id).fetch("SELECT 1 FROM rooms.rooms") == []


async def test_memberships_elsewhere_are_told_in_order(world: World) -> None:
    room = ForeignRoom()
    invite = room.send("m.room.member", {"membership": "invite"}, sender=FAY, state_key=ALICE)
    noted = NoteMembership(ALICE, "invite", invite.event_id, FAY, b"[]")
    async with world.writer():
        first = await world.accepted(room.room_id, noted)
        (delta,) = first.memberships
        assert (delta.user_id, delta.membership, delta.stripped_state) == (ALICE, "invite", b"[]")
        await world.accepted(room.room_id, NoteMembership(ALICE, "leave", invite.event_id, ALICE))
        await world.accepted(room.room_id, NoteMembership(ALICE, "invite", invite.event_id, FAY, b"[]"))
        join = join_of(room, ALICE)
        await stage(world, room, join)
        entered = await world.accepted(room.room_id, EnterRoom("j1"))
        assert entered.memberships[0].position > delta.position + 2
        late = await world.submit(world.command(room.room_id, noted))
        assert (late.http_status, late.errcode) == (409, "M_BAD_STATE")
    await check_stored(world, room.room_id)


async def test_pdus_of_a_room_wait_for_the_join_or_are_dropped(world: World) -> None:
    room = ForeignRoom()
    database = world.shards.of_room(room.room_id)
    partition = world.shards.partition_of(room.room_id)

    async def put(event: Event) -> tuple[int, ...]:
        row = NewInboxRow(partition, room.room_id, FAR, event.event_id, event.pdu, NOW_MS)
        async with database.transaction() as tx:
            return tuple(await inbox.add(tx, [row]))

    async def lying() -> list[int]:
        return [row[0] for row in await database.fetch("SELECT inbox_id FROM rooms.inbox ORDER BY 1")]

    async with world.writer():
        stray = await put(room.send("m.room.message", {"body": "nobody listens"}, sender=FAY))
        await world.accepted(room.room_id, ReceivePdus(stray))
        assert await lying() == []
        join = join_of(room, ALICE)
        await stage(world, room, join)
        room.add(join)
        waiting = await put(room.send("m.room.message", {"body": "hello"}, sender=FAY))
        early = await world.submit(world.command(room.room_id, ReceivePdus(waiting)))
        assert early.http_status == 404
        assert await lying() == list(waiting)
        await world.accepted(room.room_id, EnterRoom("j1"))
        outcome = await world.accepted(room.room_id, ReceivePdus(waiting))
        assert room.tip is not None
        assert outcome.event_ids == (room.tip.event_id,)
        assert await lying() == []
    await check_stored(world, room.room_id)
