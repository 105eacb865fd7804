"""Events from behind a gap, live and backfilled: judged by a state that was told, and where they stand then."""

import pytest
from remote_room import CARLA, DORA, RemoteRoom, remote_room
from writer_world import ALICE, World

from matrixcore.events import Event
from matrixcore.identifiers import EventId
from tessera.records import OrderKey, RecordKind
from tessera.storage import backward_extremities
from tessera.storage.state_loading import find_places, load_state_at
from tessera.storage.verification import list_broken_chains, list_wrong_state


@pytest.fixture(params=["1", "10", "12"])
def version(request: pytest.FixtureRequest) -> str:
    version: str = request.param
    return version


async def deliver_behind_gap(room: RemoteRoom, event: Event) -> None:
    """What federation_in does: the state before the event with its auth chain as outliers, then the event."""
    state = list(room.before(event.prev_events).values())
    chain = list(state)
    for event_id in chain:
        chain += [cited for cited in room.events[event_id].auth_events if cited not in chain]
    await room.deliver(*(room.events[event_id] for event_id in chain), outlier=True)
    await room.name(await room.put(event, told=state))


async def extremities_below(room: RemoteRoom) -> dict[EventId, OrderKey]:
    async with room.world.shards.of_room(room.room_id).reading() as tx:
        low, high = OrderKey(0), OrderKey(1 << 40)
        return await backward_extremities.list_between(tx, room.room_id, low, high, 100)


async def check_stored_state(room: RemoteRoom, *events: Event) -> None:
    """The state that is stored before each event is the right one."""
    async with room.world.shards.of_room(room.room_id).reading() as tx:
        places = await find_places(tx, room.room_id, [event.event_id for event in events])
        for event in events:
            place = places[event.event_id]
            there = {**await load_state_at(tx, room.room_id, place.base), **place.delta}
            assert {key: told for key, told in there.items() if told} == room.before(event.prev_events)
        assert await list_wrong_state(tx, [room.room_id]) == []


async def test_an_event_behind_a_gap_starts_a_new_stretch(world: World, version: str) -> None:
    async with world.writer():
        room = await remote_room(world, version)
        old = room.tip
        missed = [room.join(DORA), room.topic("missed", sender=DORA), room.message("missed")]
        event = room.message("seen", sender=DORA)
        await deliver_behind_gap(room, event)
        row = await room.row(event)
        assert (row["rejected"], row["soft_failed"], row["sub"]) == (None, None, 0)
        records = [one for many in (await world.stored_records()).values() for one in many]
        gaps = [one for one in records if one.kind is RecordKind.GAP]
        assert [(one.room_id, one.position) for one in gaps] == [(room.room_id, row["anchor"] - 1)]
        assert await room.extremities() == {old, event.event_id}
        # What was missed counts in current state, as far as states tell it.
        assert await room.current() == room.before([old, event.event_id])
        assert (await room.current())["m.room.topic", ""] == missed[1].event_id
        assert await extremities_below(room) == {event.event_id: OrderKey(row["anchor"])}
        later = room.topic("on", prev=[old, event.event_id])
        await room.deliver(later)
        assert await room.extremities() == {later.event_id}
        await check_stored_state(room, event, later)
        assert await room.inbox_states() == []


async def test_who_was_banned_here_cannot_come_back_over_a_gap(world: World) -> None:
    """The told state lacks the ban, which is in current state: soft-failed at most."""
    async with world.writer():
        room = await remote_room(world)
        await room.deliver(room.join(DORA))
        tip = room.tip
        ban = room.make("m.room.member", {"membership": "ban"}, sender=ALICE, state_key=DORA)
        await room.deliver(ban)
        hidden = room.message("in the gap", prev=[tip])
        event = room.message("evil", sender=DORA, prev=[hidden.event_id])
        await deliver_behind_gap(room, event)
        assert (await room.row(event))["soft_failed"] is not None
        assert ("m.room.member", DORA) in await room.current()
        assert (await room.current())["m.room.member", DORA] == ban.event_id


async def test_an_event_waits_for_the_state_that_it_was_told(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        missed = room.topic("missed")
        event = room.message("seen")
        state = list(room.before(event.prev_events).values())
        await room.name(await room.put(event, told=state))
        assert await room.inbox_states() == ["parked"]
        await room.deliver(missed, outlier=True)
        assert await room.inbox_states() == []
        assert (await room.row(event))["anchor"] is not None


async def test_what_its_told_state_forbids_is_rejected(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        missed = room.message("missed")
        event = room.make("m.room.power_levels", {"users": {CARLA: 100}}, state_key="", prev=[missed.event_id])
        await deliver_behind_gap(room, event)
        assert (await room.row(event))["rejected"] is not None


async def test_history_is_backfilled_below(world: World, version: str) -> None:
    async with world.writer():
        room = await remote_room(world, version)
        missed = [room.message("one"), room.topic("two"), room.join(DORA), room.message("four", sender=DORA)]
        event = room.message("seen")
        await deliver_behind_gap(room, event)
        anchor = (await room.row(event))["anchor"]
        before = await room.current()
        records = len((await world.stored_records()).get(world.shards.partition_of(room.room_id), []))
        # The upper half, told of the state before it; then the lower half, which stands on what is here.
        told = list(room.before(missed[2].prev_events).values())
        ids = await room.put(missed[2], told=told, below=anchor)
        ids += await room.put(missed[3], below=anchor)
        await room.name(ids[::-1])
        assert await extremities_below(room) == {missed[2].event_id: OrderKey(anchor, -2)}
        await room.name(await room.put(missed[1], missed[0], below=anchor))
        assert await extremities_below(room) == {}
        assert [(await room.row(one))["sub"] for one in missed] == [-4, -3, -2, -1]
        assert await room.current() == before
        assert len((await world.stored_records())[world.shards.partition_of(room.room_id)]) == records
        await check_stored_state(room, *missed, event)
        async with world.shards.of_room(room.room_id).reading() as tx:
            assert await list_broken_chains(tx, [room.room_id]) == []
        # The room goes on, and forks from history are judged by the state there.
        late = room.message("late", sender=DORA, prev=[missed[3].event_id])
        await room.deliver(late)
        assert (await room.row(late))["soft_failed"] is None
        await check_stored_state(room, late)


async def test_history_is_judged_by_its_time_alone(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        missed = [room.join(DORA), room.message("fine then", sender=DORA)]
        ban = room.make("m.room.member", {"membership": "ban"}, sender=ALICE, state_key=DORA)
        event = room.message("seen")
        await deliver_behind_gap(room, event)
        anchor = (await room.row(event))["anchor"]
        assert (await room.current())["m.room.member", DORA] == ban.event_id
        evil = room.topic("evil", sender=DORA, prev=[ban.event_id])
        await room.name(await room.put(*missed, ban, evil, below=anchor))
        rows = [await room.row(one) for one in (*missed, ban, evil)]
        assert [row["rejected"] is None for row in rows] == [True, True, True, False]
        assert all(row["soft_failed"] is None for row in rows)
        assert [row["sub"] for row in rows][:3] == [-4, -3, -2]


async def test_a_redaction_that_is_here_meets_its_target_in_history(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        target = room.message("secret")
        event = room.message("seen")
        await deliver_behind_gap(room, event)
        content = {"redacts": target.event_id}
        redaction = room.make("m.room.redaction", content)
        await room.deliver(redaction)
        await room.name(await room.put(target, below=(await room.row(event))["anchor"]))
        row = await room.row(target)
        assert (row["redacted_by"], row["sub"]) == (redaction.event_id, -1)
        assert b"secret" not in row["pdu"]
        # The gap is told of once, and what fills it by no record.
        kinds = [record.kind for records in (await world.stored_records()).values() for record in records]
        assert kinds.count(RecordKind.GAP) == 1
        assert kinds[kinds.index(RecordKind.GAP) + 1] is RecordKind.EVENT
