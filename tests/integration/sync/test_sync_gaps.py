"""What other servers sent and is not here makes a timeline limited. Spec: C-S API §Syncing; DESIGN.md section 4."""

import asyncio
from typing import Any

import pytest
from forked_rooms import Dag
from sync_world import ALICE, BOB, World

from matrixcore.identifiers import EventId, RoomId
from tessera.pagination_token import encode_page_token, point_before
from tessera.records import OrderKey, RecordKind

QUIET = {"presence": {"types": []}}


async def over_gap(
    world: World, room_id: RoomId, below: EventId, body: str, *, missed: int = 3, dag: Dag | None = None
) -> Any:
    """A message of Bob's above events that are missing; its batch, published."""
    dag = dag or await world.writer.dag(room_id)
    batch = await world.writer.over_gap(dag, below, BOB, body, missed=missed)
    await world.publish(batch)
    return batch


def bodies(section: dict[str, Any]) -> list[str]:
    return [event["content"].get("body", event["type"]) for event in section["timeline"]["events"]]


def prev_batch_of(batch: Any) -> str:
    """The point before the batch's event."""
    (anchor,) = [record.position for record in batch.records if record.kind is RecordKind.EVENT]
    return encode_page_token(point_before(OrderKey(anchor)))


@pytest.mark.parametrize("is_parked", [True, False])
async def test_a_timeline_begins_above_a_gap(world: World, is_parked: bool) -> None:
    room_id = await world.room(ALICE, BOB)
    below = await world.say(room_id, ALICE, "before")
    alice = world.client(ALICE)
    await alice.sync()
    parked = asyncio.create_task(alice.sync(timeout=10_000, filter=QUIET)) if is_parked else None
    batch = await over_gap(world, room_id, below, "above")
    if parked is None:
        await world.say(room_id, ALICE, "after")
    section = (await (parked or alice.sync()))["rooms"]["join"][room_id]
    assert bodies(section) == (["above"] if is_parked else ["above", "after"])
    assert section["timeline"]["limited"] is True
    assert section["timeline"]["prev_batch"] == prev_batch_of(batch)
    await world.say(room_id, ALICE, "on")
    section = (await alice.sync())["rooms"]["join"][room_id]
    assert (bodies(section), section["timeline"]["limited"]) == (["on"], False)


async def test_what_lies_between_the_token_and_the_gap_is_left_to_paging(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    alice = world.client(ALICE)
    await alice.sync()
    below = await world.say(room_id, ALICE, "before")
    await world.publish(await world.writer.send(room_id, ALICE, "m.room.topic", {"topic": "new"}, state_key=""))
    dag = await world.writer.dag(room_id)
    first = await over_gap(world, room_id, below, "one", dag=dag)
    second = await over_gap(world, room_id, below, "two", dag=dag)
    assert [record.kind for record in first.records] == [RecordKind.GAP, RecordKind.EVENT]
    section = (await alice.sync())["rooms"]["join"][room_id]
    assert bodies(section) == ["two"]
    assert (section["timeline"]["limited"], section["timeline"]["prev_batch"]) == (True, prev_batch_of(second))
    # What the timeline leaves out is in the state.
    assert [event["type"] for event in section["state"]["events"]] == ["m.room.topic"]


async def test_an_initial_sync_begins_above_a_gap_until_it_is_filled(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    below = await world.say(room_id, ALICE, "before")
    batch = await over_gap(world, room_id, below, "above")
    await world.say(room_id, ALICE, "after")
    section = (await world.client(ALICE).sync())["rooms"]["join"][room_id]
    assert bodies(section) == ["above", "after"]
    assert (section["timeline"]["limited"], section["timeline"]["prev_batch"]) == (True, prev_batch_of(batch))
    assert {event["type"] for event in section["state"]["events"]} >= {"m.room.create", "m.room.member"}
    await world.shards.of_room(room_id).execute("DELETE FROM rooms.backward_extremities")
    section = (await world.client(ALICE, "NEW").sync())["rooms"]["join"][room_id]
    assert bodies(section)[-3:] == ["before", "above", "after"]


async def test_a_room_without_gaps_costs_nothing_more(world: World) -> None:
    """Both look-ups have indexes of their own: no record of a room is read for its gaps."""
    room_id = await world.room(ALICE, BOB)
    database = world.shards.of_room(room_id)
    gaps = """
    SELECT g.position FROM rooms.records g WHERE g.room_id = $1 AND g.kind = 3 AND g.position > 0
    ORDER BY g.position DESC LIMIT 10
    """
    async with database.transaction() as tx:
        await tx.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(row[0] for row in await tx.fetch("EXPLAIN " + gaps, room_id))
    assert "records_of_gaps" in plan
