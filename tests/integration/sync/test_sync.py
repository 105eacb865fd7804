"""GET /sync over HTTP: what clients meet in their first week. Spec: C-S API §Syncing."""

import asyncio
from collections.abc import Collection
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sync_world import ALICE, BOB, CAROL, SyncClient, World

from matrixcore.identifiers import RoomId, UserId
from services.sync.snapshot import Snapshots
from tessera.fanout import DeviceWake, TypingChange
from tessera.storage import device_changes
from tessera.storage.database import Database
from tessera.storage.device_changes import DeviceChange

LAZY = {"room": {"state": {"lazy_load_members": True}}}


def answers(path: str) -> float:
    return REGISTRY.get_sample_value("tessera_sync_answers_total", {"path": path}) or 0.0


def bodies(section: dict[str, Any]) -> list[str]:
    return [event["content"].get("body", event["type"]) for event in section["timeline"]["events"]]


def joined(answer: dict[str, Any], room_id: RoomId) -> dict[str, Any]:
    section: dict[str, Any] = answer["rooms"]["join"][room_id]
    return section


async def wait_parked(world: World, client: SyncClient, **query: Any) -> "asyncio.Task[dict[str, Any]]":
    """A sync that is known to wait for news."""
    task = asyncio.create_task(client.sync(timeout=20_000, **query))
    await wait_until_parked(world, client.user_id, task)
    return task


async def wait_until_parked(world: World, user_id: UserId, task: "asyncio.Task[Any]") -> None:
    """Return once a request of the user waits."""
    for _ in range(2_000):
        await asyncio.sleep(0.001)
        state = world.services[0].instance.users.find(user_id)
        if state is not None and any(poll.is_parked for poll in state.polls):
            return
        assert not task.done(), task.result()
    raise AssertionError("the request does not wait")


async def test_initial_then_long_poll_from_memory(world: World, accounts: Database) -> None:
    room_id = await world.room(ALICE, BOB, name="Tea")
    await world.say(room_id, ALICE, "one")
    bob = world.client(BOB)
    first = await bob.sync()
    section = joined(first, room_id)
    assert bodies(section)[-1] == "one"
    assert section["state"]["events"] == []  # the whole room fits into the timeline
    assert section["timeline"]["limited"] is False
    assert section["summary"] == {"m.joined_member_count": 2, "m.invited_member_count": 0}
    assert section["unread_notifications"] == {"highlight_count": 0, "notification_count": 1}
    assert first["device_one_time_keys_count"] == {"signed_curve25519": 0}
    assert first["device_unused_fallback_key_types"] == []
    assert any(event["type"] == "m.push_rules" for event in first["account_data"]["events"])
    assert await bob.sync(timeout=0) == {
        "next_batch": bob.since,
        "device_one_time_keys_count": {"signed_curve25519": 0},
        "device_unused_fallback_key_types": [],
    }
    waiting = await wait_parked(world, bob)
    batch = await world.writer.message(room_id, ALICE, "two")
    before = answers("memory")
    async with accounts.counting() as count:
        await world.publish(batch, project=False)
        second = await waiting
    assert bodies(joined(second, room_id)) == ["two"]
    assert joined(second, room_id)["unread_notifications"]["notification_count"] == 2
    assert (count.statements, answers("memory") - before) == (0, 1)


async def test_two_requests_with_one_token_get_the_same(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    token = bob.since
    waiting = [await wait_parked(world, bob, since=token) for _ in range(2)]
    await world.say(room_id, ALICE, "hello")
    for answer in await asyncio.gather(*waiting):
        assert bodies(joined(answer, room_id)) == ["hello"]
    assert bodies(joined(await bob.sync(since=token), room_id)) == ["hello"]


async def test_transaction_id_is_for_the_sending_device_alone(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    sender, other, bob = world.client(ALICE, "A1"), world.client(ALICE, "A2"), world.client(BOB)
    for client in (sender, other, bob):
        await client.sync()
    batch = await world.writer.send(
        room_id, ALICE, "m.room.message", {"msgtype": "m.text", "body": "x"}, device="A1", txn_id="t1"
    )
    await world.publish(batch)
    seen = [joined(await client.sync(), room_id)["timeline"]["events"][0] for client in (sender, other, bob)]
    assert [event["unsigned"].get("transaction_id") for event in seen] == ["t1", None, None]
    fresh = joined(await world.client(ALICE, "A1").sync(), room_id)["timeline"]["events"][-1]
    assert fresh["unsigned"]["transaction_id"] == "t1"


async def test_limited_timeline_brings_the_state_of_the_gap(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "old"})
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "new"})
    for number in range(3):
        await world.say(room_id, ALICE, str(number))
    token = bob.since
    for query in ({}, {"use_state_after": "true"}):
        answer = await bob.sync(since=token, filter={"room": {"timeline": {"limit": 2}}}, **query)
        section = joined(answer, room_id)
        assert bodies(section) == ["1", "2"]
        assert section["timeline"]["limited"] is True
        state = section["state_after" if query else "state"]
        assert [event["content"] for event in state["events"]] == [{"topic": "new"}]
        assert ("state" in section) is not bool(query)
    empty = joined(await bob.sync(since=token, filter={"room": {"timeline": {"limit": 0}}}), room_id)
    assert (empty["timeline"]["events"], empty["timeline"]["limited"]) == ([], True)
    assert empty["timeline"]["prev_batch"]
    assert [event["content"] for event in empty["state"]["events"]] == [{"topic": "new"}]


async def test_state_after_includes_what_the_timeline_shows(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    first = joined(await bob.sync(use_state_after="true"), room_id)
    types = {event["type"] for event in first["state_after"]["events"]}
    assert types == {"m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules"}
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "t"})
    section = joined(await bob.sync(use_state_after="true"), room_id)
    assert [event["type"] for event in section["timeline"]["events"]] == ["m.room.topic"]
    assert [event["type"] for event in section["state_after"]["events"]] == ["m.room.topic"]
    assert "state" not in section
    await world.say(room_id, ALICE, "x")
    assert joined(await bob.sync(use_state_after="true"), room_id)["state_after"] == {"events": []}


async def test_prev_content_of_member_events(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    await world.member(room_id, ALICE, "join", displayname="Al")
    (event,) = joined(await bob.sync(), room_id)["timeline"]["events"]
    assert event["unsigned"]["prev_content"] == {"membership": "join"}
    last = joined(await world.client(BOB).sync(), room_id)["timeline"]["events"][-1]
    assert last["unsigned"]["prev_content"] == {"membership": "join"}


async def test_summary_and_heroes_only_when_changed(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    first = joined(await bob.sync(filter=LAZY), room_id)
    assert first["summary"]["m.heroes"] == [ALICE]
    await world.say(room_id, ALICE, "x")
    assert "summary" not in joined(await bob.sync(filter=LAZY), room_id)
    await world.member(room_id, CAROL, "invite", sender=ALICE)
    section = joined(await bob.sync(filter=LAZY), room_id)
    assert section["summary"] == {
        "m.heroes": [ALICE, CAROL],
        "m.joined_member_count": 2,
        "m.invited_member_count": 1,
    }


async def test_heroes_that_were_read_before_somebody_came_are_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    read_heroes = Snapshots.read_heroes

    async def read_overtaken(self: Snapshots, room_id: RoomId) -> tuple[UserId, ...]:
        heroes = await read_heroes(self, room_id)
        monkeypatch.undo()
        await world.member(room_id, CAROL, "invite", sender=ALICE)
        return heroes

    monkeypatch.setattr(Snapshots, "read_heroes", read_overtaken)
    await world.member(room_id, ALICE, "join", displayname="a")
    assert joined(await bob.sync(), room_id)["summary"]["m.heroes"] == [ALICE]
    assert joined(await bob.sync(), room_id)["summary"]["m.heroes"] == [ALICE, CAROL]


async def test_a_member_that_was_read_before_a_redaction_is_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await world.room(ALICE, BOB, name="n")
    carol = await world.writer.member(room_id, CAROL, "join", displayname="a name that must go")
    await world.publish(carol)
    for number in range(12):
        await world.say(room_id, BOB, str(number))
    bob = world.client(BOB)
    await bob.sync(filter=LAZY)
    read_member_forms = Snapshots.read_member_forms

    async def read_overtaken(self: Snapshots, room_id: RoomId, user_ids: Collection[UserId]) -> dict[UserId, bytes]:
        forms = await read_member_forms(self, room_id, user_ids)
        monkeypatch.undo()
        await world.publish(await world.writer.redact(room_id, ALICE, carol.records[0]))
        return forms

    monkeypatch.setattr(Snapshots, "read_member_forms", read_overtaken)
    await world.say(room_id, CAROL, "hi")
    since = bob.since
    await bob.sync(filter=LAZY)
    members = joined(await bob.sync(filter=LAZY, since=since), room_id)["state"]["events"]
    (content,) = [member["content"] for member in members if member["state_key"] == CAROL]
    assert "displayname" not in content


async def test_heroes_come_with_their_members_under_lazy_loading(world: World) -> None:
    room_id = await world.room(ALICE, BOB, CAROL)
    for number in range(12):
        await world.say(room_id, BOB, str(number))
    section = joined(await world.client(BOB).sync(filter=LAZY), room_id)
    members = {event["state_key"] for event in section["state"]["events"] if event["type"] == "m.room.member"}
    assert members == {ALICE, BOB, CAROL}  # heroes, and the own one


async def test_lazy_loading_sends_a_sender_once(world: World) -> None:
    room_id = await world.room(ALICE, BOB, CAROL, name="n")
    for number in range(12):
        await world.say(room_id, BOB, str(number))
    bob = world.client(BOB)
    section = joined(await bob.sync(filter=LAZY), room_id)
    assert {event["state_key"] for event in section["state"]["events"] if event["type"] == "m.room.member"} == {BOB}
    await world.say(room_id, ALICE, "hi")
    token = bob.since
    for _ in range(2):  # the memory belongs to the token
        section = joined(await bob.sync(filter=LAZY, since=token), room_id)
        assert [event["state_key"] for event in section["state"]["events"]] == [ALICE]
    await world.say(room_id, ALICE, "again")
    assert joined(await bob.sync(filter=LAZY), room_id)["state"]["events"] == []


async def test_invite_state_holds_the_invite(world: World) -> None:
    room_id = await world.room(ALICE)
    bob = world.client(BOB)
    await bob.sync()
    waiting = await wait_parked(world, bob)
    await world.member(room_id, BOB, "invite", sender=ALICE)
    events = (await waiting)["rooms"]["invite"][room_id]["invite_state"]["events"]
    told = {(event["type"], event["state_key"]): event["content"] for event in events}
    assert told["m.room.member", BOB]["membership"] == "invite"
    assert ("m.room.create", "") in told
    assert room_id in (await world.client(BOB).sync())["rooms"]["invite"]
    await world.member(room_id, BOB, "leave", sender=ALICE)
    answer = await bob.sync()
    assert room_id in answer["rooms"]["leave"]
    assert "rooms" not in await world.client(BOB).sync()


async def test_newly_joined_room_comes_whole(world: World) -> None:
    room_id = await world.room(ALICE, CAROL)
    await world.say(room_id, ALICE, "before")
    bob = world.client(BOB)
    await bob.sync()
    await world.member(room_id, BOB, "join")
    section = joined(await bob.sync(filter={"room": {"timeline": {"limit": 1}}}), room_id)
    assert section["timeline"]["limited"] is True
    state = {(event["type"], event["state_key"]) for event in section["state"]["events"]}
    assert {("m.room.create", ""), ("m.room.member", ALICE), ("m.room.member", CAROL)} <= state


async def test_left_room_ends_with_the_own_leave(world: World) -> None:
    room_id = await world.room(ALICE, BOB, visibility="world_readable")
    bob = world.client(BOB)
    await bob.sync()
    await world.say(room_id, ALICE, "last words")
    await world.member(room_id, BOB, "ban", sender=ALICE)
    await world.say(room_id, ALICE, "secret")
    answer = await bob.sync()
    assert bodies(answer["rooms"]["leave"][room_id]) == ["last words", "m.room.member"]
    assert "join" not in answer["rooms"]
    await world.say(room_id, ALICE, "more")
    assert "rooms" not in await bob.sync()
    assert "rooms" not in await world.client(BOB).sync()
    whole = await world.client(BOB).sync(filter={"room": {"include_leave": True}})
    assert bodies(whole["rooms"]["leave"][room_id])[-1] == "m.room.member"


async def test_a_leave_that_is_projected_late_still_cuts(world: World) -> None:
    room_id = await world.room(ALICE, BOB, visibility="world_readable")
    bob, other = world.client(BOB), world.client(BOB, "other")
    await bob.sync()
    await other.sync()
    leave = await world.writer.member(room_id, BOB, "leave")
    secret = await world.writer.message(room_id, ALICE, "secret")
    await world.publish(leave, secret, project=False)
    assert bodies(joined(await bob.sync(), room_id)) == ["m.room.member"]  # from memory
    assert bodies(joined(await other.sync(full_state="true"), room_id)) == ["m.room.member"]  # from PostgreSQL
    await world.say(room_id, ALICE, "more")
    assert "rooms" not in await bob.sync()
    await world.publish(leave)
    assert bodies((await bob.sync())["rooms"]["leave"][room_id]) == []


async def test_a_leave_that_the_log_never_got_still_counts(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    away = [await world.writer.member(room_id, BOB, "leave"), await world.writer.message(room_id, ALICE, "away")]
    await world.publish(*away, project=False)
    assert bodies(joined(await bob.sync(), room_id)) == ["m.room.member"]
    await world.member(room_id, BOB, "join")
    section = joined(await bob.sync(), room_id)
    assert section["timeline"]["limited"] is True
    assert "away" in bodies(section)


async def test_a_leave_that_is_heard_after_the_log_has_the_next_join_cuts_nothing(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    leave = await world.writer.member(room_id, BOB, "leave")
    join = await world.writer.member(room_id, BOB, "join")
    await world.project(leave, join)
    assert "m.room.create" in bodies(joined(await bob.sync(), room_id))  # entered anew, by the log
    await world.publish(leave, join, project=False)
    await world.say(room_id, ALICE, "welcome back")
    assert "welcome back" in bodies(joined(await bob.sync(), room_id))


async def test_rejoined_room_comes_as_new(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    await world.member(room_id, BOB, "leave")
    await world.member(room_id, BOB, "join")
    section = joined(await bob.sync(), room_id)
    assert section["timeline"]["limited"] is True
    assert "leave" not in (await world.client(BOB).sync())["rooms"]


async def test_ignored_users_act_at_once(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    other = await world.room(CAROL)
    bob = world.client(BOB)
    await bob.sync()
    await world.set_data(BOB, "m.ignored_user_list", {"ignored_users": {ALICE: {}, CAROL: {}}})
    await bob.sync()
    await world.say(room_id, ALICE, "unheard")
    await world.member(other, BOB, "invite", sender=CAROL)
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "heard"})
    answer = await bob.sync()
    assert bodies(joined(answer, room_id)) == ["m.room.topic"]
    assert joined(answer, room_id)["unread_notifications"]["notification_count"] == 0
    assert "invite" not in answer["rooms"]


async def test_receipts_of_ignored_users_are_not_shown(world: World) -> None:
    room_id = await world.room(ALICE, BOB, CAROL)
    event_id = await world.say(room_id, ALICE, "x")
    await world.set_data(ALICE, "m.ignored_user_list", {"ignored_users": {BOB: {}}})
    alice = world.client(ALICE)
    await alice.sync()
    await world.read(room_id, BOB, event_id)
    await world.read(room_id, CAROL, event_id)
    for client in (alice, world.client(ALICE, "other")):  # out of memory, and of a snapshot
        (receipt,) = joined(await client.sync(), room_id)["ephemeral"]["events"]
        assert list(receipt["content"][event_id]["m.read"]) == [CAROL]


async def test_who_blocks_invites_is_shown_none(world: World) -> None:
    room_id = await world.room(ALICE)
    bob = world.client(BOB)
    await world.member(room_id, BOB, "invite", sender=ALICE)
    await world.set_data(BOB, "m.invite_permission_config", {"default_action": "block"})
    assert "invite" not in (await bob.sync()).get("rooms", {})
    other = await world.room(CAROL)
    await world.member(other, BOB, "invite", sender=CAROL)
    assert "invite" not in (await bob.sync()).get("rooms", {})
    await world.set_data(BOB, "m.invite_permission_config", {})
    again = await world.client(BOB, "other").sync()
    assert set(again["rooms"]["invite"]) == {room_id, other}


async def test_push_rules_appear_at_each_change(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await world.say(room_id, ALICE, "x")
    assert joined(await bob.sync(), room_id)["unread_notifications"]["notification_count"] == 1
    rule = {"rule_id": room_id, "actions": [], "enabled": True}
    await world.set_rules(BOB, {"own": {"room": [rule]}, "changes": {}})
    answer = await bob.sync()
    assert [event["type"] for event in answer["account_data"]["events"]] == ["m.push_rules"]


async def test_account_data_and_tags(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    waiting = await wait_parked(world, bob)
    await world.set_data(BOB, "org.example", {"a": 1})
    assert (await waiting)["account_data"]["events"] == [{"type": "org.example", "content": {"a": 1}}]
    await world.set_data(BOB, "m.tag", {"tags": {"u.x": {}}}, room_id)
    section = joined(await bob.sync(), room_id)
    assert section["account_data"]["events"] == [{"type": "m.tag", "content": {"tags": {"u.x": {}}}}]


async def test_to_device_until_a_later_position_is_presented(world: World, accounts: Database) -> None:
    bob = world.client(BOB, "B1")
    await bob.sync()
    waiting = await wait_parked(world, bob)
    await world.send_to_device(ALICE, BOB, "B1", {"n": 1})
    token = bob.since
    expected = [{"sender": ALICE, "type": "m.test", "content": {"n": 1}}]
    assert (await waiting)["to_device"]["events"] == expected
    assert (await bob.sync(since=token))["to_device"]["events"] == expected
    assert await accounts.fetchval("SELECT count(*) FROM accounts.to_device") == 1
    assert "to_device" not in await bob.sync()
    assert await accounts.fetchval("SELECT count(*) FROM accounts.to_device") == 0


async def test_receipts_and_typing(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    event_id = await world.say(room_id, ALICE, "x")
    bob, alice = world.client(BOB), world.client(ALICE)
    assert joined(await bob.sync(), room_id)["unread_notifications"]["notification_count"] == 1
    await alice.sync()
    await world.read(room_id, BOB, event_id)
    (receipt,) = joined(await alice.sync(), room_id)["ephemeral"]["events"]
    assert list(receipt["content"][event_id]["m.read"]) == [BOB]
    assert joined(await bob.sync(), room_id)["unread_notifications"]["notification_count"] == 0
    waiting = await wait_parked(world, alice)
    await world.fanout.publish_typing(TypingChange(room_id, BOB, 30_000))
    section = joined(await waiting, room_id)
    assert section["ephemeral"]["events"] == [{"type": "m.typing", "content": {"user_ids": [BOB]}}]
    await world.fanout.publish_typing(TypingChange(room_id, BOB, 0))
    section = joined(await alice.sync(), room_id)
    assert section["ephemeral"]["events"] == [{"type": "m.typing", "content": {"user_ids": []}}]


async def test_private_receipts_are_the_readers_own(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    event_id = await world.say(room_id, ALICE, "x")
    bob, alice = world.client(BOB), world.client(ALICE)
    await bob.sync()
    await alice.sync()
    await world.read(room_id, BOB, event_id, "m.read.private")
    section = joined(await bob.sync(), room_id)
    assert list(section["ephemeral"]["events"][0]["content"][event_id]) == ["m.read.private"]
    assert section["unread_notifications"]["notification_count"] == 0
    assert "rooms" not in await alice.sync()


async def test_threads_count_apart_when_asked_for(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    root = await world.say(room_id, ALICE, "root")
    bob = world.client(BOB)
    by_thread = {"room": {"timeline": {"unread_thread_notifications": True}}}
    await bob.sync()
    relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    reply = await world.say(room_id, ALICE, "reply", **relation)
    await world.say(room_id, ALICE, "you", **relation, **{"m.mentions": {"user_ids": [BOB]}})
    token = bob.since
    section = joined(await bob.sync(filter=by_thread), room_id)
    assert section["unread_notifications"] == {"highlight_count": 0, "notification_count": 1}
    assert section["unread_thread_notifications"] == {root: {"highlight_count": 1, "notification_count": 2}}
    together = joined(await bob.sync(since=token), room_id)
    assert together["unread_notifications"] == {"highlight_count": 1, "notification_count": 3}
    await world.read(room_id, BOB, reply, thread=root)
    section = joined(await bob.sync(filter=by_thread), room_id)
    assert section["unread_thread_notifications"] == {root: {"highlight_count": 1, "notification_count": 1}}


async def test_presence_of_those_around(world: World) -> None:
    await world.room(ALICE, BOB)
    bob, carol = world.client(BOB), world.client(CAROL)
    await bob.sync()
    await carol.sync()
    await bob.sync()  # the own presence
    waiting = await wait_parked(world, bob)
    await world.client(ALICE).sync()
    (event,) = (await waiting)["presence"]["events"]
    assert (event["sender"], event["content"]["presence"]) == (ALICE, "online")
    assert event["content"]["currently_active"] is True
    fresh = await world.client(BOB, "other").sync(set_presence="offline")
    assert {event["sender"] for event in fresh["presence"]["events"]} == {ALICE, BOB}
    assert "presence" not in await bob.sync()
    answer = await carol.sync()
    assert {event["sender"] for event in answer.get("presence", {}).get("events", [])} <= {CAROL}


async def test_filters(world: World) -> None:
    room_id, other = await world.room(ALICE, BOB), await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    token = bob.since
    await world.say(room_id, ALICE, "one", url="mxc://here.org/1")
    await world.state(room_id, ALICE, "m.room.topic", {"topic": "t"})
    await world.say(room_id, BOB, "two")
    await world.say(other, ALICE, "elsewhere")

    async def ask(**wanted: Any) -> dict[str, Any]:
        answer = await bob.sync(since=token, filter=wanted)
        return {room: bodies(section) for room, section in answer.get("rooms", {}).get("join", {}).items()}

    assert await ask(room={"rooms": [other]}) == {other: ["elsewhere"]}
    assert await ask(room={"not_rooms": [other]}) == {room_id: ["one", "m.room.topic", "two"]}
    topicless = await ask(room={"not_rooms": [other], "timeline": {"types": ["m.room.message"]}})
    assert topicless == {room_id: ["one", "two"]}
    assert (await ask(room={"timeline": {"senders": [BOB]}}))[room_id] == ["two"]
    assert (await ask(room={"timeline": {"contains_url": True}}))[room_id] == ["one"]
    assert (await ask(room={"timeline": {"limit": 1, "types": ["m.room.message"]}}))[room_id] == ["two"]
    fields = {"event_fields": ["content.body"], "room": {"rooms": [other]}}
    answer = await bob.sync(since=token, filter=fields)
    assert joined(answer, other)["timeline"]["events"] == [{"content": {"body": "elsewhere"}}]
    # A state event that the timeline leaves out is not lost.
    answer = await bob.sync(since=token, filter={"room": {"timeline": {"not_types": ["m.room.topic"]}}})
    assert [event["type"] for event in joined(answer, room_id)["state"]["events"]] == ["m.room.topic"]


async def test_full_state(world: World) -> None:
    room_id = await world.room(ALICE, BOB, name="n")
    bob = world.client(BOB)
    await bob.sync()
    section = joined(await bob.sync(full_state="true", timeout=20_000), room_id)
    assert section["timeline"]["events"] == []
    assert ("m.room.name", "") in {(event["type"], event["state_key"]) for event in section["state"]["events"]}


async def test_redaction_of_what_the_client_has(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    batch = await world.writer.message(room_id, ALICE, "oops")
    await world.publish(batch)
    bob = world.client(BOB)
    assert joined(await bob.sync(), room_id)["unread_notifications"]["notification_count"] == 1
    waiting = await wait_parked(world, bob)
    await world.publish(await world.writer.redact(room_id, ALICE, batch.records[0]))
    section = joined(await waiting, room_id)
    (event,) = section["timeline"]["events"]
    assert (event["type"], event["redacts"]) == ("m.room.redaction", batch.records[0].event.event_id)
    assert section["unread_notifications"]["notification_count"] == 0
    target = joined(await world.client(BOB).sync(), room_id)["timeline"]["events"][-2]
    assert target["content"] == {}
    assert target["unsigned"]["redacted_because"]["event_id"] == event["event_id"]


async def test_relations_are_bundled_in_limited_timelines(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    event_id = await world.say(room_id, ALICE, "typo")
    edit = {"m.new_content": {"msgtype": "m.text", "body": "type"}}
    relation = {"m.relates_to": {"rel_type": "m.replace", "event_id": event_id}}
    await world.say(room_id, ALICE, "* type", **edit, **relation)
    await world.say(room_id, BOB, "reply", **{"m.relates_to": {"rel_type": "m.thread", "event_id": event_id}})
    events = joined(await world.client(BOB).sync(), room_id)["timeline"]["events"]
    (original,) = [event for event in events if event["event_id"] == event_id]
    bundle = original["unsigned"]["m.relations"]
    assert bundle["m.replace"]["content"]["body"] == "* type"
    assert (bundle["m.thread"]["count"], bundle["m.thread"]["current_user_participated"]) == (1, True)


async def test_an_event_never_comes_before_its_key(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB, "B1")
    await bob.sync()
    waiting = await wait_parked(world, bob)
    batch = await world.writer.message(room_id, ALICE, "encrypted")
    # The key is committed and heard of, but the log is not read yet when the event comes.
    await world.send_to_device(ALICE, BOB, "B1", {"key": 1})
    await world.publish(batch, project=False)
    answer = await waiting
    assert "to_device" in answer


async def test_mentions_highlight(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    for _ in range(2):  # counted from PostgreSQL, then on from memory
        await world.say(room_id, ALICE, "you", **{"m.mentions": {"user_ids": [BOB]}})
        counts = joined(await bob.sync(), room_id)["unread_notifications"]
    assert counts == {"highlight_count": 2, "notification_count": 2}
    assert joined(await world.client(BOB).sync(), room_id)["unread_notifications"] == counts
    await world.say(room_id, BOB, "here I am")
    counts = joined(await bob.sync(), room_id)["unread_notifications"]
    assert counts == {"highlight_count": 0, "notification_count": 0}


async def test_what_was_counted_before_it_is_heard_of_is_counted_once(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    oops = await world.writer.message(room_id, ALICE, "oops")
    await world.publish(oops)
    bob = world.client(BOB)
    await bob.sync()
    await world.publish(await world.writer.redact(room_id, ALICE, oops.records[0]))
    later = await world.writer.message(room_id, ALICE, "committed, and not heard of yet")
    await bob.sync()
    await world.publish(later)
    assert joined(await bob.sync(), room_id)["unread_notifications"]["notification_count"] == 1


async def test_counts_from_before_a_redaction_are_not_counted_on_from(world: World) -> None:
    """As when a request that began before it ends after it."""
    room_id = await world.room(ALICE, BOB)
    oops = await world.writer.message(room_id, ALICE, "oops")
    await world.publish(oops)
    bob = world.client(BOB)
    await bob.sync()
    state = await world.services[0].instance.users.get(BOB)
    before = state.unread[room_id]
    await world.publish(await world.writer.redact(room_id, ALICE, oops.records[0]))
    await bob.sync()
    state.unread[room_id] = before
    await world.say(room_id, ALICE, "hello")
    assert joined(await bob.sync(), room_id)["unread_notifications"]["notification_count"] == 1


async def test_a_muted_room_does_not_count(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    stored = {"own": {"override": [mute_rule(room_id)]}, "changes": {}}
    await world.set_rules(BOB, stored)
    await bob.sync()
    await world.say(room_id, ALICE, "x")
    assert joined(await bob.sync(), room_id)["unread_notifications"]["notification_count"] == 0
    assert joined(await world.client(BOB).sync(), room_id)["unread_notifications"]["notification_count"] == 0


def mute_rule(room_id: RoomId) -> dict[str, Any]:
    condition = {"kind": "event_match", "key": "room_id", "pattern": room_id}
    return {"rule_id": room_id, "actions": [], "enabled": True, "conditions": [condition]}


async def test_a_logout_ends_the_parked_sync(world: World) -> None:
    bob = world.client(BOB, "B1")
    await bob.sync()
    task = asyncio.create_task(bob.request(since=bob.since, timeout=20_000))
    await wait_until_parked(world, BOB, task)
    await world.end_session(BOB, "B1")
    reply = await task
    assert (reply.status_code, reply.json()["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_device_lists(world: World, accounts: Database) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    first = await bob.sync()
    assert "device_lists" not in first
    waiting = await wait_parked(world, bob)
    async with accounts.transaction() as tx:
        head = await device_changes.add_changes(tx, [DeviceChange(ALICE, "A1"), DeviceChange(CAROL, "C1")])
    await world.fanout.publish_device_wake(DeviceWake(head, (ALICE, CAROL)))
    assert (await waiting)["device_lists"] == {"changed": [ALICE], "left": []}
    await world.member(room_id, CAROL, "join")
    assert (await bob.sync())["device_lists"] == {"changed": [CAROL], "left": []}
    await world.member(room_id, CAROL, "leave")
    assert (await bob.sync())["device_lists"] == {"changed": [], "left": [CAROL]}
    reply = await bob.get("/keys/changes", **{"from": first["next_batch"], "to": bob.since})
    assert reply.json() == {"changed": [ALICE], "left": []}


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ({"since": "x"}, "M_INVALID_PARAM"),
        ({"timeout": "soon"}, "M_INVALID_PARAM"),
        ({"filter": "{"}, "M_BAD_JSON"),
        ({"filter": '{"room": 1}'}, "M_INVALID_PARAM"),
        ({"filter": "77"}, "M_INVALID_PARAM"),
        ({"full_state": "maybe"}, "M_INVALID_PARAM"),
        ({"set_presence": "busy"}, "M_INVALID_PARAM"),
    ],
)
async def test_bad_parameters(world: World, query: dict[str, str], errcode: str) -> None:
    reply = await world.client(BOB).request(**query)
    assert (reply.status_code, reply.json()["errcode"]) == (400, errcode)
