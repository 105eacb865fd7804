"""What other servers sent and is not here makes a timeline of sliding sync limited, too. Spec: MSC4186."""

from sliding_client import SlidingClient, bodies, one_list
from sync_world import ALICE, BOB, World

from tessera.pagination_token import encode_page_token, point_before
from tessera.records import OrderKey, RecordKind


async def test_a_timeline_begins_above_a_gap(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    below = await world.say(room_id, ALICE, "before")
    alice = SlidingClient(world, ALICE)
    first = (await alice.sync(lists=one_list()))["rooms"][room_id]
    assert bodies(first)[-1] == "before"
    batch = await world.writer.over_gap(await world.writer.dag(room_id), below, BOB, "above", missed=3)
    await world.publish(batch)
    await world.say(room_id, ALICE, "after")
    (anchor,) = [record.position for record in batch.records if record.kind is RecordKind.EVENT]
    prev_batch = encode_page_token(point_before(OrderKey(anchor)))
    for client in (alice, SlidingClient(world, ALICE, "NEW")):
        room = (await client.sync(lists=one_list()))["rooms"][room_id]
        assert bodies(room) == ["above", "after"]
        assert (room["limited"], room["prev_batch"]) == (True, prev_batch)
    await world.say(room_id, ALICE, "on")
    room = (await alice.sync(lists=one_list()))["rooms"][room_id]
    assert (bodies(room), room["limited"]) == (["on"], False)
