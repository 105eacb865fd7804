"""Sliding sync over HTTP: lists, windows, timelines and state. Spec: MSC4186."""

import asyncio

from sliding_client import ACCEPTED, SlidingClient, bodies, one_list, state_of, wish
from sync_world import ALICE, BOB, CAROL, World

NAME, TOPIC, CREATE = ("m.room.name", ""), ("m.room.topic", ""), ("m.room.create", "")
ME, LAZY = ("m.room.member", "$ME"), ("m.room.member", "$LAZY")


async def test_first_window_and_what_comes_after(world: World) -> None:
    room_id = await world.room(ALICE, BOB, name="Tea")
    await world.say(room_id, ALICE, "one")
    bob = SlidingClient(world, BOB)
    lists = one_list(19, 2, NAME, CREATE, ME)
    first = await bob.sync(lists=lists)
    assert first["lists"] == {"a": {"count": 1}}
    room = first["rooms"][room_id]
    assert room["initial"] is True
    assert room["name"] == "Tea"
    assert bodies(room) == ["m.room.member", "one"]
    assert room["limited"] is True
    assert room["num_live"] == 0
    assert (room["joined_count"], room["invited_count"]) == (2, 0)
    assert (room["notification_count"], room["highlight_count"]) == (1, 0)
    assert set(state_of(room)) == {NAME, CREATE, ("m.room.member", BOB)}
    assert "heroes" not in room
    quiet = await bob.sync(lists=lists)
    assert quiet["rooms"] == {}
    await world.say(room_id, ALICE, "two")
    second = (await bob.sync(lists=lists))["rooms"][room_id]
    assert "initial" not in second
    assert bodies(second) == ["two"]
    assert (second["limited"], second["num_live"], second["notification_count"]) == (False, 1, 2)
    assert second["bump_stamp"] > room["bump_stamp"]
    assert "required_state" not in second
    assert "name" not in second
    await world.state(room_id, ALICE, "m.room.name", {"name": "Coffee"})
    third = (await bob.sync(lists=lists))["rooms"][room_id]
    assert third["name"] == "Coffee"
    assert state_of(third) == {NAME: {"name": "Coffee"}}


async def test_rooms_come_by_activity_and_a_growing_window_tells_the_rest(world: World) -> None:
    rooms = [await world.room(ALICE, name=f"Room {number}") for number in range(6)]
    await asyncio.sleep(0.002)
    await world.say(rooms[0], ALICE, "newest")
    alice = SlidingClient(world, ALICE)
    first = await alice.sync(lists=one_list(1, 1))
    assert first["lists"]["a"]["count"] == 6
    assert set(first["rooms"]) >= {rooms[0]}
    assert len(first["rooms"]) == 2
    second = await alice.sync(lists=one_list(4, 1))
    assert len(second["rooms"]) == 3
    assert not set(second["rooms"]) & set(first["rooms"])
    third = await alice.sync(lists=one_list(99, 1))
    assert set(first["rooms"]) | set(second["rooms"]) | set(third["rooms"]) == set(rooms)
    # An event takes a room to the top of the list, and so into the window.
    outside = next(iter(third["rooms"]))
    await world.say(outside, ALICE, "here")
    fourth = await alice.sync(lists=one_list(0, 1))
    assert list(fourth["rooms"]) == [outside]
    assert bodies(fourth["rooms"][outside]) == ["here"]


async def test_a_room_that_fell_behind_goes_on_where_it_was(world: World) -> None:
    quiet, busy = await world.room(ALICE, BOB), await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    both = {"room_subscriptions": {quiet: wish(10), busy: wish(10)}}
    await bob.sync(**both)
    await world.say(quiet, ALICE, "unheard")
    only = await bob.sync(room_subscriptions={busy: wish(10)})
    assert only["rooms"] == {}
    await world.say(busy, ALICE, "heard")
    assert set((await bob.sync(room_subscriptions={busy: wish(10)}))["rooms"]) == {busy}
    await world.say(quiet, ALICE, "newest")
    back = (await bob.sync(**both))["rooms"]
    assert set(back) == {quiet}
    assert bodies(back[quiet]) == ["unheard", "newest"]
    assert back[quiet]["num_live"] == 1
    assert "initial" not in back[quiet]


async def test_a_repeated_request_gets_its_answer_again(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=one_list())
    await world.say(room_id, ALICE, "lost?")
    other = await world.room(ALICE, BOB, name="New")
    pos = bob.pos
    for _ in range(3):
        again = await bob.sync(pos=pos, lists=one_list())
        assert bodies(again["rooms"][room_id]) == ["lost?"]
        assert again["rooms"][other]["initial"] is True
    assert (await bob.sync(lists=one_list()))["rooms"] == {}
    # Once more was told after that answer, what was before it is gone.
    await world.room(ALICE, BOB)
    assert len((await bob.sync(lists=one_list()))["rooms"]) == 1
    await world.say(room_id, ALICE, "more")
    old = await bob.request(pos=pos, lists=one_list())
    assert (old.status_code, old.json()["errcode"]) == (400, "M_UNKNOWN_POS")
    assert bodies((await bob.sync(lists=one_list()))["rooms"][room_id]) == ["more"]


async def test_a_larger_timeline_limit_brings_older_events(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    for text in "abcd":
        await world.say(room_id, ALICE, text)
    bob = SlidingClient(world, BOB)
    assert bodies((await bob.sync(lists=one_list(9, 1)))["rooms"][room_id]) == ["d"]
    larger = (await bob.sync(lists=one_list(9, 1), room_subscriptions={room_id: wish(3)}))["rooms"][room_id]
    assert bodies(larger) == ["b", "c", "d"]
    assert larger["unstable_expanded_timeline"] is True
    assert larger["limited"] is True
    assert larger["num_live"] == 0
    assert "initial" not in larger
    assert (await bob.sync(lists=one_list(9, 1), room_subscriptions={room_id: wish(3)}))["rooms"] == {}
    await world.say(room_id, ALICE, "e")
    assert bodies((await bob.sync(lists=one_list(9, 1)))["rooms"][room_id]) == ["e"]
    assert (await bob.sync(lists=one_list(9, 3)))["rooms"] == {}  # nothing is missing among the newest three


async def test_a_gap_is_limited_and_brings_its_state(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    lists = one_list(9, 2, TOPIC)
    await bob.sync(lists=lists)
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "old"})
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "new"})
    for text in "abc":
        await world.say(room_id, ALICE, text)
    room = (await bob.sync(lists=lists))["rooms"][room_id]
    assert bodies(room) == ["b", "c"]
    assert room["limited"] is True
    assert state_of(room) == {TOPIC: {"topic": "new"}}
    assert room["prev_batch"].startswith("t")
    # With a larger limit again, what the gap left out comes after all.
    assert bodies((await bob.sync(lists=one_list(9, 4, TOPIC)))["rooms"][room_id]) == ["m.room.topic", "a", "b", "c"]


async def test_fewer_events_than_asked_for_come_all(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    for text in "ab":
        await world.say(room_id, ALICE, text)
    bob = SlidingClient(world, BOB)
    room = (await bob.sync(lists=one_list(9, 10)))["rooms"][room_id]
    assert bodies(room)[0] == "m.room.create"
    assert (len(room["timeline"]), room["limited"]) == (7, False)
    await world.say(room_id, ALICE, "c")
    await world.member(room_id, CAROL, "join")  # read, not told from memory
    room = (await bob.sync(lists=one_list(9, 3)))["rooms"][room_id]
    assert (bodies(room), room["limited"], room["joined_count"]) == (["c", "m.room.member"], False, 3)


async def test_more_required_state_comes_at_once(world: World) -> None:
    room_id = await world.room(ALICE, BOB, name="Tea")
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "t"})
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=one_list(9, 1, NAME))
    room = (await bob.sync(lists=one_list(9, 1, NAME, TOPIC)))["rooms"][room_id]
    assert state_of(room) == {TOPIC: {"topic": "t"}}
    assert "timeline" not in room
    await bob.sync(lists=one_list(9, 1, NAME))
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "unasked"})
    assert state_of((await bob.sync(lists=one_list(9, 1, NAME)))["rooms"][room_id]) == {}
    assert state_of((await bob.sync(lists=one_list(9, 1, ("*", "*"))))["rooms"][room_id])[TOPIC] == {"topic": "unasked"}


async def test_members_come_lazily(world: World) -> None:
    room_id = await world.room(ALICE, BOB, CAROL)
    await world.say(room_id, ALICE, "hello")
    bob = SlidingClient(world, BOB)
    lists = one_list(9, 1, LAZY, ME, ("*", "*"))
    state = state_of((await bob.sync(lists=lists))["rooms"][room_id])
    assert {key for key in state if key[0] == "m.room.member"} == {("m.room.member", ALICE), ("m.room.member", BOB)}
    assert CREATE in state
    await world.say(room_id, ALICE, "again")
    assert state_of((await bob.sync(lists=lists))["rooms"][room_id]) == {}
    await world.say(room_id, CAROL, "me too")
    assert set(state_of((await bob.sync(lists=lists))["rooms"][room_id])) == {("m.room.member", CAROL)}
    await world.member(room_id, ALICE, "join", displayname="Al")
    assert state_of((await bob.sync(lists=lists))["rooms"][room_id])["m.room.member", ALICE]["displayname"] == "Al"


async def test_rooms_without_a_name_have_heroes(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    await world.member(room_id, CAROL, "join", displayname="Caro")
    room = (await SlidingClient(world, BOB).sync(lists=one_list()))["rooms"][room_id]
    assert room["heroes"] == [{"user_id": ALICE}, {"user_id": CAROL, "displayname": "Caro"}]
    assert "name" not in room


async def test_the_accepted_form(world: World) -> None:
    room_id = await world.room(ALICE, BOB, name="Tea")
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "t"})
    bob = SlidingClient(world, BOB)
    required = {"include": [{}], "exclude": [{"type": "m.room.create"}], "lazy_members": True}
    lists = {"all": {"timeline_limit": 1, "required_state": required}}
    room = (await bob.sync(ACCEPTED, lists=lists))["rooms"][room_id]
    state = state_of(room)
    assert CREATE not in state
    assert TOPIC in state
    assert (room["lists"], room["membership"]) == (["all"], "join")
    assert "notification_count" not in room
    lists["all"]["timeline_limit"] = 2
    assert (await bob.sync(ACCEPTED, lists=lists))["rooms"][room_id]["expanded_timeline"] is True
    await world.state(room_id, ALICE, "m.room.name", {})
    assert (await bob.sync(ACCEPTED, lists=lists, timeout=1))["rooms"][room_id]["name"] is None
