"""A peer that leaves a room with a thousand forward extremities, and how it gets over it."""

from collections.abc import AsyncIterator

import pytest
from peer_world import PeerWorld, peer_world
from remote_room import remote_room
from writer_world import ALICE, World

from services.federation_in.extremity_merging import MANY, merge
from tessera.commands import DUMMY_EVENT, Append, NewEvent
from tessera.storage.database import Database
from tessera.storage.peer_rooms import list_scattered_rooms


@pytest.fixture
async def peer(world: World, accounts: Database) -> AsyncIterator[PeerWorld]:
    async with world.writer(), peer_world(world, accounts) as made:
        yield made


async def test_a_thousand_extremities_are_merged_by_events_that_nobody_is_shown(peer: PeerWorld) -> None:
    room = await remote_room(peer.world)
    tip = room.tip
    events = [room.message(str(number), prev=[tip]) for number in range(1_000)]
    for start in range(0, len(events), 50):
        await peer.send(*events[start : start + 50])
    await peer.settled(room, *events)
    assert len(await room.extremities()) == 1_000
    database = peer.world.shards.of_room(room.room_id)
    async with database.reading() as tx:
        assert await list_scattered_rooms(tx, MANY, 10) == [room.room_id]
    await merge(peer.deps, room.room_id)
    assert len(await room.extremities()) <= MANY
    shown = "SELECT count(*) FROM rooms.records r JOIN rooms.events e USING (room_id, event_id) WHERE e.type = $1"
    assert await database.fetchval(shown, DUMMY_EVENT) == 0
    outcome = await peer.world.accepted(room.room_id, Append(NewEvent("m.room.message", None, {"body": "on"})), ALICE)
    assert await room.extremities() == set(outcome.event_ids)


async def test_merging_events_of_others_are_part_of_the_room_and_shown_to_nobody(peer: PeerWorld) -> None:
    room = await remote_room(peer.world)
    merging = room.make(DUMMY_EVENT, {})
    above = room.message("above")
    await peer.send(merging, above)
    await peer.settled(room, merging, above)
    assert (await room.row(merging))["anchor"] is None
    assert (await room.row(above))["anchor"] is not None
    assert await room.extremities() == {above.event_id}
