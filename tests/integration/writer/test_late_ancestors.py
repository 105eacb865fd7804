"""Events that come after those that stand on them, which were placed above a gap. DESIGN section 13, 7."""

import pytest
from remote_room import remote_room
from test_behind_gaps import check_stored_state, deliver_behind_gap
from writer_world import World


@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_what_comes_after_the_events_above_it_is_no_end_of_the_room(world: World, version: str) -> None:
    """The state of the later events says already what it did; beside them its topic might win."""
    async with world.writer():
        room = await remote_room(world, version)
        first = room.topic("first", at_ms=2_000_000_000_000)
        second = room.topic("second", at_ms=1_000_000_000_000)
        event = room.message("seen")
        await deliver_behind_gap(room, event)
        after = room.before([event.event_id])
        # That the first comes before the one above the gap shows only with the second.
        for late, ends in ((first, {first.event_id, event.event_id}), (second, {event.event_id})):
            await room.deliver(late)
            assert (await room.row(late))["anchor"] is not None
            assert await room.extremities() == ends
            assert await room.current() == room.before(sorted(ends))
        assert await room.current() == after
        assert after["m.room.topic", ""] == second.event_id
        later = room.topic("on", prev=[event.event_id])
        await room.deliver(later)
        assert await room.extremities() == {later.event_id}
        await check_stored_state(room, event, first, second, later)
        assert await room.inbox_states() == []


async def test_events_that_come_together_from_the_latest_on_leave_one_end(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        first, second = room.topic("first"), room.topic("second")
        told = list(room.before([second.event_id]).values())
        event = room.message("seen")
        chain = [one for one in room.events if room.events[one].state_key is not None]
        await room.deliver(*(room.events[one] for one in chain), outlier=True)
        ids = [*await room.put(event, told=told), *await room.put(first, second)]
        await room.name(ids)
        assert await room.extremities() == {event.event_id}
        assert await room.current() == room.before([event.event_id])
