"""Sliding sync's long polls, connections and what ends them. Spec: MSC4186 §Connections, `timeout`."""

import asyncio
from typing import Any

import pytest
from sliding_client import ACCEPTED, EXPERIMENTAL, SlidingClient, bodies, one_list, wish
from sync_world import ALICE, BOB, CAROL, World

from matrixcore.identifiers import RoomId
from services.sync.sliding.request import MAX_BODY_BYTES
from tessera.fanout import TypingChange
from tessera.storage.sliding_connections import MAX_PER_DEVICE

ON = {"enabled": True}


async def park(world: World, client: SlidingClient, **body: Any) -> "asyncio.Task[dict[str, Any]]":
    """A request that is known to wait for news."""
    task = asyncio.create_task(client.sync(timeout=20_000, **body))
    await until_parked(world, client, task)
    return task


async def until_parked(world: World, client: SlidingClient, task: "asyncio.Task[Any]") -> None:
    for _ in range(2_000):
        await asyncio.sleep(0.001)
        state = world.services[0].instance.users.find(client.user_id)
        if state is not None and any(poll.is_parked for poll in state.polls):
            return
        assert not task.done(), task.result()
    raise AssertionError("the request does not wait")


async def test_a_request_waits_for_what_its_windows_hold(world: World) -> None:
    room_id, other = await world.room(ALICE, BOB), await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    only = {"room_subscriptions": {room_id: wish(5)}}
    await bob.sync(**only)
    waiting = await park(world, bob, **only)
    await world.say(other, ALICE, "elsewhere")
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await world.say(room_id, ALICE, "here")
    answer = await waiting
    assert bodies(answer["rooms"][room_id]) == ["here"]
    # What happened elsewhere meanwhile is told where it is asked for.
    both = await bob.sync(room_subscriptions={room_id: wish(5), other: wish(5)})
    assert set(both["rooms"]) == {other}


async def test_a_time_out_and_no_time_out(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=one_list())
    assert (await bob.sync(lists=one_list(), timeout=30))["rooms"] == {}
    assert (await bob.sync(lists=one_list()))["rooms"] == {}
    pos = bob.pos
    assert (await bob.sync(lists=one_list()))["pos"] == pos  # nothing happened at all
    assert set((await SlidingClient(world, BOB, "E").sync(lists=one_list(), timeout=20_000))["rooms"]) == {room_id}


@pytest.mark.parametrize("what", ["to_device", "typing", "invite", "account_data", "receipt"])
async def test_what_else_wakes(world: World, what: str) -> None:
    room_id = await world.room(ALICE, BOB)
    said = await world.say(room_id, BOB, "x")
    other = await world.room(ALICE)
    bob = SlidingClient(world, BOB)
    body = {"lists": one_list(), "extensions": dict.fromkeys(("to_device", "typing", "account_data", "receipts"), ON)}
    await bob.sync(**body)
    waiting = await park(world, bob, **body)
    if what == "to_device":
        await world.send_to_device(ALICE, BOB, "D", {})
    elif what == "typing":
        await world.fanout.publish_typing(TypingChange(room_id, ALICE, 10_000))
    elif what == "invite":
        await world.member(other, BOB, "invite", sender=ALICE)
    elif what == "account_data":
        await world.set_data(BOB, "m.x", {})
    else:
        await world.read(room_id, ALICE, said)
    answer = await waiting
    assert bool(answer["rooms"]) is (what == "invite")


async def test_a_wish_that_grows_is_answered_at_once(world: World) -> None:
    room_id, other = await world.room(ALICE, BOB), await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=one_list(0, 1))
    grown = await bob.sync(lists=one_list(9, 1), timeout=20_000)
    assert len(grown["rooms"]) == 1
    assert set((await bob.sync(lists=one_list(9, 2), timeout=20_000))["rooms"]) == {room_id, other}


async def test_a_logout_ends_the_wait(world: World) -> None:
    await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=one_list())
    waiting = asyncio.create_task(bob.request(pos=bob.pos, lists=one_list(), timeout=20_000))
    await until_parked(world, bob, waiting)
    await world.end_session(BOB, "D")
    assert (await waiting).status_code == 401


async def test_connections_of_one_device_do_not_disturb_each_other(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    clients = [SlidingClient(world, BOB, conn_id=name) for name in ("rooms", "keys")]
    for client in clients:
        assert (await client.sync(lists=one_list()))["rooms"][room_id]["initial"] is True
    await world.say(room_id, ALICE, "x")
    for client in clients:
        assert bodies((await client.sync(lists=one_list()))["rooms"][room_id]) == ["x"]


async def test_a_pos_that_is_lost_or_not_ones_own(world: World) -> None:
    room_id = await world.room(ALICE, BOB, CAROL)
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=one_list())
    for client, path in (
        (SlidingClient(world, CAROL), EXPERIMENTAL),
        (SlidingClient(world, BOB, "E"), ACCEPTED),
        (SlidingClient(world, BOB, conn_id="another"), EXPERIMENTAL),
    ):
        reply = await client.request(path, pos=bob.pos)
        assert (reply.status_code, reply.json()["errcode"]) == (400, "M_UNKNOWN_POS")
    # Where nobody knows any longer what was told, the client begins anew, and has everything.
    await world.accounts.execute("DELETE FROM accounts.sliding_connections")
    await world.add_service()
    elsewhere = SlidingClient(world, BOB, service=1)
    reply = await elsewhere.request(pos=bob.pos, lists=one_list())
    assert reply.json()["errcode"] == "M_UNKNOWN_POS"
    assert (await elsewhere.sync(lists=one_list()))["rooms"][room_id]["initial"] is True


async def rooms_of_one_partition(world: World) -> list[RoomId]:
    """Two rooms of Alice's and Bob's, where the one's records are past the other's."""
    found: dict[int, list[RoomId]] = {}
    while True:
        room_id = await world.room(ALICE, BOB)
        together = found.setdefault(world.shards.partition_of(room_id), [])
        together.append(room_id)
        if len(together) == 2:
            return together


async def test_any_process_goes_on_where_another_one_was(world: World) -> None:
    room_id, quiet = await rooms_of_one_partition(world)
    wanted = one_list(99)
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=wanted)
    await world.add_service()
    await world.say(room_id, ALICE, "on the way")
    elsewhere = SlidingClient(world, BOB, service=1)
    elsewhere.pos = bob.pos
    answer = await elsewhere.sync(lists=wanted)
    assert set(answer["rooms"]) == {room_id}
    assert bodies(answer["rooms"][room_id]) == ["on the way"]
    await world.say(quiet, ALICE, "and back")
    bob.pos = elsewhere.pos
    assert bodies((await bob.sync(lists=wanted))["rooms"][quiet]) == ["and back"]


async def test_rooms_looked_at_for_nothing_are_not_looked_at_again(world: World) -> None:
    """A process that has just begun does not know which rooms of a partition have gone on; the client's next does."""
    room_id, quiet = await rooms_of_one_partition(world)
    wanted = {"r": one_list()["a"]}
    del wanted["r"]["ranges"]
    subscriptions = {quiet: wanted["r"]}
    bob = SlidingClient(world, BOB)
    await bob.sync(room_subscriptions=subscriptions)
    await world.say(room_id, ALICE, "not wanted")
    await world.add_service()
    elsewhere = SlidingClient(world, BOB, service=1)
    elsewhere.pos = bob.pos
    assert (await elsewhere.sync(timeout=30_000, room_subscriptions=subscriptions))["rooms"] == {}
    waiting = asyncio.create_task(elsewhere.sync(timeout=30_000, room_subscriptions=subscriptions))
    await world.say(quiet, ALICE, "wanted")
    assert bodies((await waiting)["rooms"][quiet]) == ["wanted"]


async def test_a_device_has_so_many_connections_and_no_more(world: World) -> None:
    await world.room(ALICE, BOB)
    clients = [SlidingClient(world, BOB, conn_id=str(number)) for number in range(MAX_PER_DEVICE + 1)]
    for client in clients:
        await client.sync(lists=one_list())
    reply = await clients[0].request(pos=clients[0].pos, lists=one_list())
    assert reply.json()["errcode"] == "M_UNKNOWN_POS"
    await clients[1].sync(lists=one_list())


async def test_bad_requests(world: World) -> None:
    bob = SlidingClient(world, BOB)
    for content, status, errcode in (
        (b"nonsense", 400, "M_NOT_JSON"),
        (b"[]", 400, "M_BAD_JSON"),
        (b'{"lists": 1}', 400, "M_BAD_JSON"),
        (b'{"lists": {"a": {"ranges": [[0, -1]], "timeline_limit": 1}}}', 400, "M_INVALID_PARAM"),
        (b'{"x": "' + b"y" * MAX_BODY_BYTES + b'"}', 413, "M_TOO_LARGE"),
    ):
        reply = await bob.request(content=content)
        assert (reply.status_code, reply.json()["errcode"]) == (status, errcode), content[:40]
    reply = await bob.request(ACCEPTED, lists={"a": {"timeline_limit": 1}})
    assert reply.json()["errcode"] == "M_MISSING_PARAM"
    assert (await bob.request(pos="garbage")).json()["errcode"] == "M_UNKNOWN_POS"
    assert (await bob.request(timeout="soon")).status_code == 400
    answer = await bob.sync()
    assert (answer["lists"], answer["rooms"], answer["extensions"]) == ({}, {}, {})


async def test_a_txn_id_comes_back(world: World) -> None:
    assert (await SlidingClient(world, BOB).sync(txn_id="t1"))["txn_id"] == "t1"


async def test_statements_do_not_grow_with_the_rooms(world: World) -> None:
    for number in range(12):
        await world.room(ALICE, BOB, name=f"r{number}")
    counted = []
    for last in (1, 11):
        client = SlidingClient(world, BOB, f"D{last}")
        await client.sync()
        async with world.accounts.counting() as count:
            await client.sync(lists=one_list(last, 5, ("m.room.name", ""), ("m.room.member", "$LAZY")))
        counted.append(count.statements)
    assert max(counted) <= 12, counted
