"""Which rooms lists hold: filters, invites, kicks, rooms that were left. Spec: MSC4186 §Lists, §SlidingRoomFilter."""

from typing import Any

import orjson
import pytest
from sliding_client import ACCEPTED, SlidingClient, bodies, one_list, state_of, wish
from sync_world import ALICE, BOB, CAROL, World

from matrixcore.identifiers import RoomId, UserId
from services.sync import user_states
from tessera.storage import user_rooms


async def listed(world: World, user_id: UserId, device: str = "F", **filters: Any) -> set[str]:
    """The rooms that a filter lets through."""
    answer = await SlidingClient(world, user_id, device).sync(lists=one_list(99, 1, **filters))
    assert answer["lists"]["a"]["count"] == len(answer["rooms"])
    return set(answer["rooms"])


async def test_filters(world: World) -> None:
    plain, secret, direct, tagged, invited = [
        await world.room(ALICE, name=name) for name in ("plain", "secret", "direct", "tagged", "invited")
    ]
    await world.state(secret, ALICE, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    await world.set_data(ALICE, "m.direct", {BOB: [direct], CAROL: "nonsense"})
    await world.set_data(ALICE, "m.tag", {"tags": {"m.favourite": {}}}, tagged)
    foreign = await world.room(BOB, name="theirs")
    await world.member(foreign, ALICE, "invite", sender=BOB)
    every = {plain, secret, direct, tagged, invited, foreign}
    assert await listed(world, ALICE) == every
    assert await listed(world, ALICE, is_encrypted=True) == {secret}
    assert await listed(world, ALICE, is_encrypted=False) == every - {secret}
    assert await listed(world, ALICE, is_dm=True) == {direct}
    assert await listed(world, ALICE, is_dm=False) == every - {direct}
    assert await listed(world, ALICE, is_invite=True) == {foreign}
    assert await listed(world, ALICE, is_invite=False) == every - {foreign}
    assert await listed(world, ALICE, tags=["m.favourite", "u"]) == {tagged}
    assert await listed(world, ALICE, not_tags=["m.favourite"]) == every - {tagged}
    assert await listed(world, ALICE, tags=["m.favourite"], not_tags=["m.favourite"]) == set()
    assert await listed(world, ALICE, room_types=[None]) == every
    assert await listed(world, ALICE, room_types=["m.space"]) == set()
    assert await listed(world, ALICE, not_room_types=[None]) == set()


async def test_filters_follow_what_changes(world: World) -> None:
    room_id = await world.room(ALICE, name="r")
    alice = SlidingClient(world, ALICE)
    lists = {
        "dms": one_list(99, 1, is_dm=True)["a"],
        "secret": one_list(99, 1, is_encrypted=True)["a"],
        "tagged": one_list(99, 1, tags=["u.x"])["a"],
    }

    async def counts() -> list[int]:
        answer = await alice.sync(lists=lists)
        return [answer["lists"][name]["count"] for name in lists]

    assert await counts() == [0, 0, 0]
    await world.set_data(ALICE, "m.direct", {BOB: [room_id]})
    assert await counts() == [1, 0, 0]
    await world.state(room_id, ALICE, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    assert await counts() == [1, 1, 0]
    await world.set_data(ALICE, "m.tag", {"tags": {"u.x": {}}}, room_id)
    assert await counts() == [1, 1, 1]
    await world.set_data(ALICE, "m.direct", {})
    await world.set_data(ALICE, "m.tag", {"tags": {}}, room_id)
    assert await counts() == [0, 1, 0]


async def test_filters_follow_what_changed_while_nobody_asked_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_states, "MAX_ENTRIES", 1)
    one, other = await world.room(ALICE), await world.room(ALICE)
    alice = SlidingClient(world, ALICE)
    lists = {**one_list(99, 1, is_dm=True), "all": one_list(99, 1)["a"]}
    assert (await alice.sync(lists=lists))["lists"]["a"]["count"] == 0
    await world.set_data(ALICE, "m.direct", {BOB: [one]})
    for number in range(3):
        await world.set_data(ALICE, "m.x", {"number": number})
    answer = await alice.sync(lists=lists)
    assert answer["lists"] == {"a": {"count": 1}, "all": {"count": 2}}
    assert set(answer["rooms"]) == {one}
    assert other not in await listed(world, ALICE, is_dm=True)


async def test_spaces(world: World) -> None:
    space, inside, outside, hidden = [await world.room(ALICE, name=name) for name in ("s", "in", "out", "hidden")]
    await world.state(space, ALICE, "m.space.child", {"via": ["here.org"]}, inside)
    await world.state(space, ALICE, "m.space.child", {}, hidden)
    theirs = await world.room(BOB)
    await world.state(theirs, BOB, "m.space.child", {"via": ["here.org"]}, outside)
    assert await listed(world, ALICE, spaces=[space]) == {inside}
    assert await listed(world, ALICE, spaces=[theirs]) == set()
    await world.state(space, ALICE, "m.space.child", {"via": ["here.org"]}, outside)
    assert await listed(world, ALICE, spaces=[space, theirs]) == {inside, outside}


async def test_direct_rooms_say_so_and_when_they_no_longer_are(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    await world.set_data(ALICE, "m.direct", {BOB: [room_id]})
    alice = SlidingClient(world, ALICE)
    assert (await alice.sync(lists=one_list()))["rooms"][room_id]["is_dm"] is True
    await world.set_data(ALICE, "m.direct", {})
    assert (await alice.sync(lists=one_list()))["rooms"][room_id]["is_dm"] is False
    assert (await alice.sync(lists=one_list()))["rooms"] == {}


async def test_an_invite_then_the_room(world: World) -> None:
    room_id = await world.room(ALICE, name="Party")
    bob, other = SlidingClient(world, BOB), SlidingClient(world, BOB, "E")
    await bob.sync(lists=one_list())
    await world.member(room_id, BOB, "invite", sender=ALICE)
    invite = (await bob.sync(lists=one_list()))["rooms"][room_id]
    assert any(event["state_key"] == BOB for event in invite["invite_state"])
    assert "timeline" not in invite
    assert invite["membership"] == "invite"
    assert "required_state" not in invite
    body = {"lists": {"a": {"timeline_limit": 1, "required_state": {}}}}
    assert "stripped_state" in (await other.sync(ACCEPTED, **body))["rooms"][room_id]
    await world.member(room_id, BOB, "join")
    joined = (await bob.sync(lists=one_list()))["rooms"][room_id]
    assert (joined["initial"], joined["name"], joined["membership"]) == (True, "Party", "join")


async def test_ignored_people_and_blocked_invites_do_not_show(world: World) -> None:
    room_id = await world.room(ALICE)
    await world.member(room_id, BOB, "invite", sender=ALICE)
    assert await listed(world, BOB) == {room_id}
    await world.set_data(BOB, "m.ignored_user_list", {"ignored_users": {ALICE: {}}})
    assert await listed(world, BOB) == set()
    await world.set_data(BOB, "m.ignored_user_list", {"ignored_users": {}})
    await world.set_data(BOB, "m.invite_permission_config", {"default_action": "block"})
    assert await listed(world, BOB) == set()


async def test_what_ignored_people_say_is_left_out(world: World) -> None:
    room_id = await world.room(ALICE, BOB, CAROL)
    await world.set_data(BOB, "m.ignored_user_list", {"ignored_users": {ALICE: {}}})
    for number in range(5):
        await world.say(room_id, CAROL, f"c{number}")
        await world.say(room_id, ALICE, "unheard")
    bob = SlidingClient(world, BOB)
    room = (await bob.sync(lists=one_list(9, 3)))["rooms"][room_id]
    assert bodies(room) == ["c2", "c3", "c4"]
    await world.say(room_id, ALICE, "unheard")
    await world.say(room_id, CAROL, "heard")
    assert bodies((await bob.sync(lists=one_list(9, 3)))["rooms"][room_id]) == ["heard"]


async def test_who_is_kicked_sees_it_and_no_more(world: World) -> None:
    room_id = await world.room(ALICE, BOB, name="Tea")
    bob = SlidingClient(world, BOB)
    lists = one_list(9, 5, ("m.room.topic", ""), ("m.room.member", "$ME"))
    await bob.sync(lists=lists)
    await world.say(room_id, ALICE, "last words")
    await world.member(room_id, BOB, "leave", sender=ALICE, reason="out")
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "secret"})
    await world.say(room_id, ALICE, "secret")
    room = (await bob.sync(lists=lists))["rooms"][room_id]
    assert bodies(room) == ["last words", "m.room.member"]
    assert room["membership"] == "leave"
    assert state_of(room) == {("m.room.member", BOB): {"membership": "leave", "reason": "out"}}
    assert (await bob.sync(lists=lists))["rooms"] == {}
    await world.say(room_id, ALICE, "still secret")
    assert (await bob.sync(lists=lists))["rooms"] == {}
    # To a new connection too, as it may not know of it, with the state as it was.
    fresh = (await SlidingClient(world, BOB, "E").sync(lists=lists))["rooms"][room_id]
    assert bodies(fresh)[-2:] == ["last words", "m.room.member"]
    assert ("m.room.topic", "") not in state_of(fresh)
    assert fresh["name"] == "Tea"


async def test_rooms_that_were_left_are_told_where_they_were_known(world: World) -> None:
    room_id, other = await world.room(ALICE, BOB), await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=one_list())
    await world.member(room_id, BOB, "leave")
    room = (await bob.sync(lists=one_list()))["rooms"][room_id]
    assert (room["membership"], bodies(room)) == ("leave", ["m.room.member"])
    assert await listed(world, BOB) == {other}
    asked = (await SlidingClient(world, BOB, "G").sync(room_subscriptions={room_id: wish(2)}))["rooms"]
    assert bodies(asked[room_id])[-1] == "m.room.member"
    await world.member(room_id, BOB, "join")
    back = (await bob.sync(lists=one_list()))["rooms"][room_id]
    assert (back["initial"], back["membership"]) == (True, "join")
    await world.member(room_id, BOB, "leave")
    await world.change(lambda tx: user_rooms.forget(tx, BOB, room_id))
    assert (await SlidingClient(world, BOB, "H").sync(room_subscriptions={room_id: wish(2)}))["rooms"] == {}


async def test_a_stay_that_ended_and_began_again_unseen_is_told_anew(world: World) -> None:
    room_id = await world.room(ALICE, BOB, visibility="joined")
    bob = SlidingClient(world, BOB)
    await bob.sync(lists=one_list())
    await world.member(room_id, BOB, "leave")
    await world.say(room_id, ALICE, "behind the back")
    await world.member(room_id, BOB, "join")
    await world.say(room_id, ALICE, "welcome back")
    room = (await bob.sync(lists=one_list()))["rooms"][room_id]
    assert room["initial"] is True
    assert "behind the back" not in bodies(room)
    assert bodies(room)[-1] == "welcome back"


async def test_a_ban_without_a_stay_is_not_listed_nor_anybody_elses_room(world: World) -> None:
    room_id = await world.room(ALICE, name="closed")
    await world.member(room_id, BOB, "ban", sender=ALICE)
    subscribed = {room_id: wish(5), RoomId("!nowhere:here.org"): wish(5)}
    assert await listed(world, BOB) == set()
    assert (await SlidingClient(world, BOB).sync(room_subscriptions=subscribed))["rooms"] == {}
    assert (await SlidingClient(world, CAROL).sync(room_subscriptions=subscribed))["rooms"] == {}


async def test_an_invite_that_is_taken_back_shows_only_that(world: World) -> None:
    room_id = await world.room(ALICE, visibility="joined")
    await world.say(room_id, ALICE, "secret")
    await world.member(room_id, BOB, "invite", sender=ALICE)
    bob = SlidingClient(world, BOB)
    lists = one_list(9, 5, ("*", "*"))
    await bob.sync(lists=lists)
    await world.member(room_id, BOB, "leave", sender=ALICE)
    room = (await bob.sync(lists=lists))["rooms"][room_id]
    assert room["membership"] == "leave"
    assert bodies(room) == ["m.room.member"]
    assert set(state_of(room)) <= {("m.room.member", BOB)}
    assert b"secret" not in orjson.dumps(room)


async def test_hidden_history_stays_hidden(world: World) -> None:
    room_id = await world.room(ALICE, visibility="joined")
    await world.say(room_id, ALICE, "before")
    await world.member(room_id, BOB, "join")
    await world.say(room_id, ALICE, "after")
    bob = SlidingClient(world, BOB)
    assert bodies((await bob.sync(lists=one_list(9, 1)))["rooms"][room_id]) == ["after"]
    room = (await bob.sync(lists=one_list(9, 50)))["rooms"][room_id]
    assert bodies(room)[-2:] == ["m.room.member", "after"]
    assert "before" not in bodies(room)
