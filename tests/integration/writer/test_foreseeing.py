"""PDUs of many rooms in one batch cost what one costs, in statements. DESIGN section 2, invariant 10; section 3."""

import asyncio

import pytest
from remote_room import remote_room
from writer_world import World

ROOMS = 30


@pytest.mark.parametrize("version", ["2", "11"])
async def test_the_past_of_many_rooms_is_asked_for_at_once(world: World, version: str) -> None:
    async with world.writer():
        rooms = [await remote_room(world, version) for _ in range(ROOMS)]
        events = [room.message("hello") for room in rooms]
        named = [await room.put(event) for room, event in zip(rooms, events, strict=True)]
        database = world.shards.of_room(rooms[0].room_id)
        async with database.counting() as count:
            outcomes = await asyncio.gather(*(room.name(ids) for room, ids in zip(rooms, named, strict=True)))
        assert [outcome.event_ids for outcome in outcomes] == [(event.event_id,) for event in events]
        # For each of a few batches: what is not in memory, the inbox, places, events, what is awaited, and the commit.
        assert count.statements <= 30


async def test_what_is_foreseen_is_what_would_be_asked(world: World) -> None:
    """Forks, a parked PDU that is set free, a redaction before its target and a repeated name, all in one batch."""
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        left, right = room.topic("left", prev=[root]), room.topic("right", prev=[root])
        merged = room.message("merged", prev=[left.event_id, right.event_id])
        target = room.message("target")
        redaction = room.make("m.room.redaction", {"redacts": target.event_id}, prev=[merged.event_id])
        late = room.message("late", prev=[target.event_id, redaction.event_id])
        ids = await room.put(late, redaction, merged)
        await asyncio.gather(room.name(ids), room.name(ids[::-1]))
        assert await room.inbox_states() == ["parked"] * 3
        ids = await room.put(target, right, left)
        await asyncio.gather(*(room.name([one]) for one in (*ids, *ids)))
        assert await room.inbox_states() == []
        assert await room.extremities() == {late.event_id}
        assert await room.current() == room.before([late.event_id])
