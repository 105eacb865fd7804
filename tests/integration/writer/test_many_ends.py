"""Rooms with more forward extremities than an event may have prev events. Spec: S-S API §PDUs (prev_events)."""

import pytest
from remote_room import CARLA, DORA, RemoteRoom, remote_room
from writer_world import ALICE, BOB, NOW_MS, World, message

from matrixcore.auth_events import auth_state_keys
from matrixcore.auth_rules import check_auth
from matrixcore.events import MAX_PREV_EVENTS, Event
from matrixcore.identifiers import EventId
from matrixcore.verdicts import Accepted
from tessera.commands import Append, Draft, NewEvent, OutcomeStatus


async def check_as_others_do(room: RemoteRoom, event_id: EventId) -> Event:
    """Judge a local event as another server would; it stands in the room's own books from then on."""
    event = await room.take_in(event_id)
    state = room.before(event.prev_events)
    keys = auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules)
    expected = [state[key] for key in keys if key in state]
    assert set(event.auth_events) == set(expected)
    create = room.events[state["m.room.create", ""]]
    there = {room.events[one].state_tuple: room.events[one] for one in expected}
    assert isinstance(check_auth(event, there, create=create), Accepted)
    assert len(event.prev_events) <= MAX_PREV_EVENTS
    return event


@pytest.mark.parametrize("version", ["2", "11", "12"])
async def test_each_local_event_takes_the_place_of_twenty(world: World, version: str) -> None:
    async with world.writer():
        room = await remote_room(world, version)
        root = room.tip
        ends = [room.topic(f"{n}", prev=[root], at_ms=NOW_MS + n) for n in range(50)]
        await room.deliver(*ends)
        assert len(await room.extremities()) == 50
        counts: list[int] = []
        for number in range(3):
            outcome = await world.accepted(room.room_id, message(f"{number}"))
            await check_as_others_do(room, outcome.event_ids[0])
            left = await room.extremities()
            counts.append(len(left))
            assert await room.current() == room.before(sorted(left))
        assert counts == [31, 12, 1]
        assert (await room.current())["m.room.topic", ""] == ends[-1].event_id


async def test_a_user_whose_join_only_one_branch_knows_may_speak(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        # Bob joined on one branch; it is not among the newest.
        joined = room.make("m.room.member", {"membership": "join"}, sender=BOB, state_key=BOB, prev=[root])
        await room.deliver(joined, *[room.message(f"{n}", prev=[root]) for n in range(40)])
        outcome = await world.accepted(room.room_id, message("I am here"), BOB)
        event = await check_as_others_do(room, outcome.event_ids[0])
        assert joined.event_id in event.prev_events
        assert joined.event_id in event.auth_events
        drafted = await world.accepted(room.room_id, Draft(NewEvent("m.room.message", None, {"body": "x"})), BOB)
        assert drafted.body
        same = Append(NewEvent("m.room.topic", "", {"topic": "t"}))
        topic = await world.accepted(room.room_id, same, BOB)
        await check_as_others_do(room, topic.event_ids[0])
        assert (await world.accepted(room.room_id, same, BOB)).event_ids == topic.event_ids


async def test_what_the_whole_room_forbids_is_refused(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        await room.deliver(room.join(DORA, prev=[root]))
        root = room.tip
        out = {"membership": "ban"}
        ban = room.make("m.room.member", out, sender=ALICE, state_key=BOB, prev=[root])
        joined = room.make("m.room.member", {"membership": "join"}, sender=BOB, state_key=BOB, prev=[root])
        on_it = [room.message(f"{n}", prev=[joined.event_id]) for n in range(30)]
        await room.deliver(joined, *on_it, ban)
        assert (await room.current())["m.room.member", BOB] == ban.event_id
        outcome = await world.submit(world.command(room.room_id, message("still here"), BOB))
        assert (outcome.status, outcome.http_status) == (OutcomeStatus.REFUSED, 403)
        assert len(await room.extremities()) == 31
        assert CARLA in {room.events[event_id].sender for event_id in await room.extremities()}
