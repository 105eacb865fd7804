"""Memberships between Tessera and a real Synapse, both ways: joins, invites, knocks, kicks, bans, leaves."""

import secrets
from typing import Any

import pytest

from tests.fixtures.meeting import Meeting, Watch, eventually, members, until_member
from tests.fixtures.synapse import SynapseServer

pytestmark = pytest.mark.asyncio(loop_scope="session")


def types_in(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Type -> content of stripped state."""
    return {event["type"]: event["content"] for event in events}


def join_rules(**content: Any) -> dict[str, Any]:
    return {"type": "m.room.join_rules", "state_key": "", "content": content}


async def test_join_by_alias_leave_and_come_again(meeting: Meeting) -> None:
    alice, bob = meeting.alice, meeting.bob
    name = secrets.token_hex(4)
    room_id = await meeting.make_room(preset="public_chat", room_alias_name=name, name="Room")
    joined = await bob.post(f"/join/%23{name}:{meeting.alices.server_name}")
    assert joined["room_id"] == room_id
    await until_member(alice, room_id, bob.user_id, "join")
    assert await members(bob, room_id) == {alice.user_id: "join", bob.user_id: "join"}
    assert (await bob.get(f"/rooms/{room_id}/state/m.room.name"))["name"] == "Room"
    await bob.post(f"/rooms/{room_id}/leave")
    await until_member(alice, room_id, bob.user_id, "leave")
    # Nobody of Bob's server is in the room any more: it joins anew.
    await meeting.bob_joins(room_id)
    await until_member(alice, room_id, bob.user_id, "join")
    assert (await members(bob, room_id))[bob.user_id] == "join"


async def test_invite_reject_invite_accept(meeting: Meeting) -> None:
    alice, bob = meeting.alice, meeting.bob
    watch = await Watch.begin(bob)
    room_id = await meeting.make_room(preset="private_chat", name="Private", invite=[bob.user_id])
    shown = types_in((await watch.until_section(room_id, "invite"))["invite_state"]["events"])
    assert shown["m.room.name"] == {"name": "Private"}
    assert "m.room.create" in shown
    await bob.post(f"/rooms/{room_id}/leave")
    await until_member(alice, room_id, bob.user_id, "leave")
    await watch.until_section(room_id, "leave")
    await alice.post(f"/rooms/{room_id}/invite", {"user_id": bob.user_id})
    await watch.until_section(room_id, "invite")
    await bob.post(f"/rooms/{room_id}/join")  # whom to ask shows in the invite
    await until_member(alice, room_id, bob.user_id, "join")
    assert await members(bob, room_id) == {alice.user_id: "join", bob.user_id: "join"}


async def test_an_invite_is_taken_back(meeting: Meeting) -> None:
    watch = await Watch.begin(meeting.bob)
    room_id = await meeting.make_room(preset="private_chat", invite=[meeting.bob.user_id])
    await watch.until_section(room_id, "invite")
    await meeting.alice.post(f"/rooms/{room_id}/kick", {"user_id": meeting.bob.user_id})
    await watch.until_section(room_id, "leave")


async def test_knock_take_back_knock_let_in(meeting: Meeting) -> None:
    alice, bob = meeting.alice, meeting.bob
    watch = await Watch.begin(bob)
    rules = join_rules(join_rule="knock")
    room_id = await meeting.make_room(preset="private_chat", initial_state=[rules], name="Door")
    await bob.post(f"/knock/{room_id}?{meeting.by_alices}")
    shown = types_in((await watch.until_section(room_id, "knock"))["knock_state"]["events"])
    assert shown["m.room.join_rules"]["join_rule"] == "knock"
    await until_member(alice, room_id, bob.user_id, "knock")
    if not isinstance(meeting.bobs, SynapseServer):  # which takes knocks back without a word to anybody
        await bob.post(f"/rooms/{room_id}/leave")
        await until_member(alice, room_id, bob.user_id, "leave")
        await bob.post(f"/knock/{room_id}?{meeting.by_alices}")
        await until_member(alice, room_id, bob.user_id, "knock")
    await alice.post(f"/rooms/{room_id}/invite", {"user_id": bob.user_id})
    await watch.until_section(room_id, "invite")
    await meeting.bob_joins(room_id)
    await until_member(alice, room_id, bob.user_id, "join")


async def test_a_knock_is_refused_and_repeated(meeting: Meeting) -> None:
    """Synapse neither tells the knocker's server of the refusal nor hears of it."""
    alice, bob = meeting.alice, meeting.bob
    room_id = await meeting.make_room(preset="private_chat", initial_state=[join_rules(join_rule="knock")])
    for _ in range(2):
        await bob.post(f"/knock/{room_id}?{meeting.by_alices}")
        await until_member(alice, room_id, bob.user_id, "knock")
        await alice.post(f"/rooms/{room_id}/kick", {"user_id": bob.user_id})
        await until_member(alice, room_id, bob.user_id, "leave")


async def test_restricted_join(meeting: Meeting) -> None:
    alice, bob = meeting.alice, meeting.bob
    space = await meeting.make_room(preset="public_chat")
    allow = [{"type": "m.room_membership", "room_id": space}]
    rules = join_rules(join_rule="restricted", allow=allow)
    room_id = await meeting.make_room(preset="private_chat", initial_state=[rules])
    status, _ = await bob.refused("POST", f"/join/{room_id}?{meeting.by_alices}", {})
    assert status == 403
    await meeting.bob_joins(space)
    await meeting.bob_joins(room_id)
    await until_member(alice, room_id, bob.user_id, "join")
    event = await bob.get(f"/rooms/{room_id}/state/m.room.member/{bob.user_id}")
    assert event["join_authorised_via_users_server"] == alice.user_id


async def test_kick_ban_and_unban_of_the_last_member_of_a_server(meeting: Meeting) -> None:
    alice, bob = meeting.alice, meeting.bob
    room_id = await meeting.share_room()
    watch = await Watch.begin(bob)
    for what, membership in (("kick", "leave"), ("ban", "ban")):
        await alice.post(f"/rooms/{room_id}/{what}", {"user_id": bob.user_id, "reason": "why not"})
        await watch.until_section(room_id, "leave")
        # Tessera may have told the event before it told that the room is left.
        told = [event["content"] for event in watch.events[room_id] if event.get("state_key") == bob.user_id][-1]
        assert (told["membership"], told["reason"]) == (membership, "why not")
        status, _ = await bob.refused("POST", f"/rooms/{room_id}/send/m.room.message/x", {"body": "no"})
        assert status >= 400
        if what == "kick":
            await meeting.bob_joins(room_id)
            await watch.until_section(room_id, "join")
    status, _ = await bob.refused("POST", f"/join/{room_id}?{meeting.by_alices}", {})
    assert status == 403
    await alice.post(f"/rooms/{room_id}/unban", {"user_id": bob.user_id})
    await until_member(alice, room_id, bob.user_id, "leave")

    async def join() -> bool:
        answer, _ = await bob.call("POST", f"/join/{room_id}?{meeting.by_alices}", {})
        return bool(answer == 200)

    await eventually(join, "a join after the ban")
    await until_member(alice, room_id, bob.user_id, "join")


async def test_a_guest_moderates(meeting: Meeting) -> None:
    """Bob, who got the power for it, kicks and bans people of the server that has the room."""
    alice, bob = meeting.alice, meeting.bob
    carol = await meeting.alices_api.register(f"carol{secrets.token_hex(4)}")
    room_id = await meeting.share_room()
    await carol.post(f"/join/{room_id}")
    levels = await alice.get(f"/rooms/{room_id}/state/m.room.power_levels")
    levels.setdefault("users", {})[bob.user_id] = 50
    await alice.put(f"/rooms/{room_id}/state/m.room.power_levels", levels)
    await until_member(bob, room_id, carol.user_id, "join")

    async def may() -> bool:
        known = await bob.get(f"/rooms/{room_id}/state/m.room.power_levels")
        return bool(known["users"].get(bob.user_id) == 50)

    await eventually(may, "the power")
    watch = await Watch.begin(carol)
    await bob.post(f"/rooms/{room_id}/kick", {"user_id": carol.user_id})
    await watch.until_section(room_id, "leave")
    await bob.post(f"/rooms/{room_id}/ban", {"user_id": carol.user_id})
    await until_member(alice, room_id, carol.user_id, "ban")
    status, _ = await carol.refused("POST", f"/join/{room_id}", {})
    assert status == 403
