"""Deleted history in /sync: tokens from before it are limited. Spec: none; DESIGN.md section 4."""

from typing import Any

import pytest
from sync_world import ALICE, BOB, World

from matrixcore.identifiers import RoomId
from tessera.storage import purging


async def purge(world: World, room_id: RoomId, up_to: int) -> None:
    async with world.accounts.transaction() as tx:
        assert await purging.delete_slice(tx, room_id, up_to, None, spared_server=None)
    async with world.accounts.transaction() as tx:
        await purging.delete_what_hung_on_them(tx, room_id, up_to)


def timeline(answer: dict[str, Any], room_id: RoomId) -> tuple[list[str], bool]:
    told = answer["rooms"]["join"][room_id]["timeline"]
    return [event["content"]["body"] for event in told["events"]], told["limited"]


@pytest.mark.parametrize("noted", [False, True])
async def test_older_tokens_are_limited(world: World, noted: bool) -> None:
    """Whether or not this instance has heard of it, once it has to ask PostgreSQL; newer tokens are not."""
    room_id = await world.room(ALICE, BOB)
    client = world.client(ALICE)
    old = (await client.sync())["next_batch"]
    for body in "abcd":
        await world.say(room_id, BOB, body)
    newer = (await client.sync(since=old))["next_batch"]
    anchor = await world.accounts.fetchval("SELECT max(anchor) FROM rooms.events WHERE room_id = $1", room_id)
    await purge(world, room_id, anchor - 1)
    if noted:
        await world.publish(await world.writer.note_purged(room_id))
    else:
        await world.add_service()
        client = world.client(ALICE, service=1)
    bodies, limited = timeline(await client.sync(since=old), room_id)
    assert (bodies, limited) == (["c", "d"], True)
    answer = await client.sync(since=newer)
    assert room_id not in answer.get("rooms", {}).get("join", {})
    await world.say(room_id, BOB, "e")
    assert timeline(await client.sync(since=answer["next_batch"]), room_id) == (["e"], False)
    fresh = world.client(ALICE, "E", service=len(world.services) - 1)
    assert (await fresh.sync())["rooms"]["join"][room_id]["unread_notifications"]["notification_count"] == 2
