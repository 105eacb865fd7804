"""Presence of other servers' users in /sync. Spec: C-S API §Presence; S-S API §Presence."""

import asyncio
from typing import Any

from sync_world import ALICE, BOB, World

from matrixcore.identifiers import RoomId, UserId
from tessera.storage import presence
from tessera.storage.presence import Presence
from tessera.wakes import PresenceChange

FAR, STRANGER = UserId("@erika:away.org"), UserId("@emil:away.org")


async def let_in(world: World, room_id: RoomId, user_id: UserId) -> None:
    """A user of another server is in the room."""
    await world.shards.of_room(room_id).execute(
        "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, membership)"
        " VALUES ($1, 'm.room.member', $2, '$m', 1, 'join')",
        room_id,
        user_id,
    )


async def tell(world: World, *states: Presence) -> None:
    """What their server says, as federation_in takes it."""
    async with world.accounts.transaction() as tx:
        await presence.set_told(tx, states)
    for state in states:
        await world.fanout.publish_presence(PresenceChange(*state, currently_active=True))


def told(answer: dict[str, Any]) -> dict[str, str]:
    return {one["sender"]: one["content"]["presence"] for one in answer.get("presence", {}).get("events", [])}


async def test_an_initial_sync_tells_of_those_who_are_about(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    await let_in(world, room_id, FAR)
    alice = world.client(ALICE)
    assert told(await alice.sync(set_presence="offline")) == {}
    await tell(world, Presence(FAR, "unavailable", "at lunch", 1), Presence(STRANGER, "online", None, 1))
    fresh = await world.client(ALICE, "NEW").sync(set_presence="offline")
    assert told(fresh) == {FAR: "unavailable"}
    assert fresh["presence"]["events"][0]["content"]["status_msg"] == "at lunch"
    assert (
        told(await world.client(ALICE, "THIRD").sync(set_presence="offline", filter={"presence": {"types": []}})) == {}
    )
    # A server that has fallen silent does not keep its users online for ever.
    await world.accounts.execute("UPDATE accounts.presence SET told_at = now() - interval '1 hour'")
    assert told(await world.client(ALICE, "LATE").sync(set_presence="offline")) == {}
    await tell(world, Presence(FAR, "offline", None, 2))
    assert told(await world.client(ALICE, "LAST").sync(set_presence="offline")) == {}


async def test_a_sync_that_reads_the_snapshot_tells_what_changed(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    await let_in(world, room_id, FAR)
    alice = world.client(ALICE)
    await alice.sync(set_presence="offline")
    await tell(world, Presence(FAR, "online", None, 1), Presence(STRANGER, "online", None, 1))
    # full_state is not answered from memory.
    assert told(await alice.sync(set_presence="offline", full_state="true")) == {FAR: "online"}


async def test_a_parked_client_hears_of_it(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    await let_in(world, room_id, FAR)
    alice = world.client(ALICE)
    await alice.sync(set_presence="offline")
    waiting = asyncio.create_task(alice.sync(set_presence="offline", timeout=10_000))
    await tell(world, Presence(FAR, "online", None, 1))
    assert told(await waiting) == {FAR: "online"}


async def test_what_is_still_being_gathered_is_told_with_the_next_answer(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    await let_in(world, room_id, FAR)
    alice = world.client(ALICE)
    await alice.sync(set_presence="offline")
    await tell(world, Presence(FAR, "online", None, 1))
    first = await alice.sync(set_presence="offline")  # asks before the states know
    second = {} if told(first) else await alice.sync(set_presence="offline", timeout=10_000)
    assert told(first) | told(second) == {FAR: "online"}
