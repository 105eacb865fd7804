"""Changing rooms over HTTP, through a real writer. Spec: C-S API §Rooms."""

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL, SERVER

from matrixcore.identifiers import UserId
from tessera.storage import account_data, user_log, user_rooms, users
from tessera.storage.database import Database

pytestmark = pytest.mark.usefixtures("writer")

State = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture
async def people(http: httpx.AsyncClient, accounts: Database) -> SimpleNamespace:
    """Alice, Bob and Carol with accounts."""
    async with accounts.transaction() as tx:
        for user_id, name in ((ALICE, "Alice"), (BOB, "Bob"), (CAROL, "Carol")):
            await users.add_user(tx, user_id, password_hash=None, displayname=name, now_ms=1)
    return SimpleNamespace(alice=Client(http, ALICE, "A"), bob=Client(http, BOB, "B"), carol=Client(http, CAROL, "C"))


async def make(client: Client, **body: Any) -> str:
    room_id: str = (await client.post("/createRoom", body))["room_id"]
    return room_id


async def state_of(client: Client, room_id: str) -> State:
    events = await client.get(f"/rooms/{room_id}/state")
    return {(event["type"], event["state_key"]): event for event in events}


async def timeline(client: Client, room_id: str) -> list[dict[str, Any]]:
    chunk: list[dict[str, Any]] = (await client.get(f"/rooms/{room_id}/messages", dir="f", limit=100))["chunk"]
    return chunk


async def send(client: Client, room_id: str, body: str, txn_id: str = "1") -> str:
    reply = await client.put(f"/rooms/{room_id}/send/m.room.message/{txn_id}", {"msgtype": "m.text", "body": body})
    event_id: str = reply["event_id"]
    return event_id


# Making rooms


async def test_many_rooms_of_one_content_made_in_one_millisecond(people: SimpleNamespace) -> None:
    """The ID of a room of version 12 is a hash of its create event, which would be the same for all of them."""
    made = await asyncio.gather(*(make(people.alice, room_version="12") for _ in range(24)))
    assert len(set(made)) == 24


@pytest.mark.parametrize("version", [str(number) for number in range(1, 13)])
async def test_rooms_of_every_version(people: SimpleNamespace, version: str) -> None:
    room_id = await make(people.alice, room_version=version, name="N", topic="T", invite=[BOB], is_direct=True)
    events = await timeline(people.alice, room_id)
    assert [(event["type"], event.get("state_key")) for event in events] == [
        ("m.room.create", ""),
        ("m.room.member", ALICE),
        ("m.room.power_levels", ""),
        ("m.room.join_rules", ""),
        ("m.room.history_visibility", ""),
        ("m.room.guest_access", ""),
        ("m.room.name", ""),
        ("m.room.topic", ""),
        ("m.room.member", BOB),
    ]
    assert events[0]["content"]["room_version"] == version
    assert events[-1]["content"] == {"membership": "invite", "displayname": "Bob", "is_direct": True}
    await people.bob.post(f"/rooms/{room_id}/join")
    event_id = await send(people.bob, room_id, "hello")
    assert (await timeline(people.alice, room_id))[-1]["event_id"] == event_id
    if version == "12":
        assert room_id == "!" + events[0]["event_id"][1:]


async def test_trusted_private_chat_puts_invitees_into_additional_creators(people: SimpleNamespace) -> None:
    room_id = await make(people.alice, preset="trusted_private_chat", invite=[BOB])
    state = await state_of(people.alice, room_id)
    assert state["m.room.create", ""]["content"]["additional_creators"] == [BOB]
    assert state["m.room.power_levels", ""]["content"]["users"] == {}
    await people.bob.post(f"/rooms/{room_id}/join")
    await people.bob.put(f"/rooms/{room_id}/state/m.room.tombstone", {"body": "moved"})


async def test_an_alias_is_bound_to_the_room_or_given_back(people: SimpleNamespace) -> None:
    room_id = await make(people.alice, room_alias_name="pub", preset="public_chat")
    found = await people.bob.get(f"/directory/room/%23pub:{SERVER}")
    assert found == {"room_id": room_id, "servers": [SERVER]}
    assert (await state_of(people.alice, room_id))["m.room.canonical_alias", ""]["content"] == {
        "alias": f"#pub:{SERVER}"
    }
    assert await people.bob.refused("POST", "/createRoom", {"room_alias_name": "pub"}) == (400, "M_ROOM_IN_USE")
    broken = {"room_alias_name": "other", "room_version": "11", "power_level_content_override": {"users": {ALICE: 0}}}
    assert await people.alice.refused("POST", "/createRoom", {**broken, "name": "x"}) == (400, "M_INVALID_ROOM_STATE")
    await make(people.bob, room_alias_name="other")
    assert (await people.bob.post(f"/join/%23pub:{SERVER}"))["room_id"] == room_id


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"room_version": "13"}, (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ({"room_version": 12}, (400, "M_BAD_JSON")),
        ({"preset": "x"}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": "a:b"}, (400, "M_INVALID_PARAM")),
        ({"invite_3pid": [{"medium": "email", "address": "a@b.c"}]}, (400, "M_MISSING_PARAM")),
        ({"invite": ["@x:far.org"]}, (404, "M_NOT_FOUND")),
        ({"initial_state": [{"type": "m.room.member", "content": {}}]}, (400, "M_INVALID_ROOM_STATE")),
    ],
)
async def test_rooms_that_cannot_be(people: SimpleNamespace, body: dict[str, Any], expected: tuple[int, str]) -> None:
    assert await people.alice.refused("POST", "/createRoom", body) == expected
    assert (await people.alice.get("/joined_rooms"))["joined_rooms"] == []


async def test_a_user_who_blocks_invites_is_not_invited(people: SimpleNamespace, accounts: Database) -> None:
    async with accounts.transaction() as tx:
        await account_data.set_content(tx, BOB, "", "m.invite_permission_config", b'{"default_action":"block"}')
    assert await people.alice.refused("POST", "/createRoom", {"invite": [BOB]}) == (403, "M_INVITE_BLOCKED")
    room_id = await make(people.alice)
    refusal = await people.alice.refused("POST", f"/rooms/{room_id}/invite", {"user_id": BOB})
    assert refusal == (403, "M_INVITE_BLOCKED")


# Sending


async def test_one_transaction_is_one_event_also_at_once(people: SimpleNamespace) -> None:
    room_id = await make(people.alice)
    first, second = await asyncio.gather(send(people.alice, room_id, "x"), send(people.alice, room_id, "x"))
    assert first == second == await send(people.alice, room_id, "x")
    assert len([event for event in await timeline(people.alice, room_id) if event["type"] == "m.room.message"]) == 1


async def test_the_same_transaction_id_in_two_rooms_is_two_events(people: SimpleNamespace) -> None:
    here, there = await make(people.alice), await make(people.alice)
    assert await send(people.alice, here, "x") != await send(people.alice, there, "x")


async def test_the_transaction_id_is_shown_to_the_sending_device(
    people: SimpleNamespace, http: httpx.AsyncClient
) -> None:
    room_id = await make(people.alice)
    event_id = await send(people.alice, room_id, "x", "txn%2F1")
    own = await people.alice.get(f"/rooms/{room_id}/event/{event_id}")
    assert own["unsigned"]["transaction_id"] == "txn/1"
    other = await Client(http, ALICE, "OTHER").get(f"/rooms/{room_id}/event/{event_id}")
    assert "transaction_id" not in other["unsigned"]


async def test_who_may_not_send(people: SimpleNamespace) -> None:
    room_id = await make(people.alice)
    assert await people.bob.refused("PUT", f"/rooms/{room_id}/send/m.room.message/1", {}) == (403, "M_FORBIDDEN")
    assert await people.bob.refused("PUT", "/rooms/!no:here.org/send/m.room.message/1", {}) == (404, "M_NOT_FOUND")
    assert await people.bob.refused("PUT", "/rooms/nonsense/send/m.room.message/1", {}) == (400, "M_INVALID_PARAM")


async def test_an_event_over_the_limit_is_413(people: SimpleNamespace) -> None:
    room_id = await make(people.alice)
    body = {"body": "x" * 65_000}
    assert await people.alice.refused("PUT", f"/rooms/{room_id}/send/m.room.message/1", body) == (413, "M_TOO_LARGE")


async def test_redactions_by_both_endpoints(people: SimpleNamespace) -> None:
    for version in ("10", "11"):
        room_id = await make(people.alice, room_version=version)
        for txn, by_send in (("a", True), ("b", False)):
            target = await send(people.alice, room_id, "oops", txn)
            if by_send:
                path, body = f"/rooms/{room_id}/send/m.room.redaction/r{txn}", {"redacts": target, "reason": "spam"}
            else:
                path, body = f"/rooms/{room_id}/redact/{target}/r{txn}", {"reason": "spam"}
            redaction_id = (await people.alice.put(path, body))["event_id"]
            assert (await people.alice.put(path, body))["event_id"] == redaction_id
            event = await people.alice.get(f"/rooms/{room_id}/event/{target}")
            assert event["content"] == {}
            because = event["unsigned"]["redacted_because"]
            assert (because["event_id"], because["content"]["reason"]) == (redaction_id, "spam")
            assert because["redacts"] == because["content"]["redacts"] == target
    assert await people.alice.refused("PUT", f"/rooms/{room_id}/send/m.room.redaction/x", {}) == (
        400,
        "M_MISSING_PARAM",
    )


@pytest.mark.parametrize("version", ["1", "10", "11", "12"])
async def test_others_events_are_redacted_by_who_has_the_power_alone(people: SimpleNamespace, version: str) -> None:
    room_id = await make(people.alice, preset="public_chat", room_version=version)
    await people.bob.post(f"/rooms/{room_id}/join", {})
    theirs = await send(people.alice, room_id, "hers", "t1")
    assert await people.bob.refused("PUT", f"/rooms/{room_id}/redact/{theirs}/r1", {}) == (403, "M_FORBIDDEN")
    by_send = f"/rooms/{room_id}/send/m.room.redaction/r2"
    assert await people.bob.refused("PUT", by_send, {"redacts": theirs}) == (403, "M_FORBIDDEN")
    assert (await people.alice.get(f"/rooms/{room_id}/event/{theirs}"))["content"]["body"] == "hers"
    own = await send(people.bob, room_id, "his", "t2")
    await people.bob.put(f"/rooms/{room_id}/redact/{own}/r3", {})
    again = await send(people.bob, room_id, "his", "t3")
    await people.alice.put(f"/rooms/{room_id}/redact/{again}/r4", {})
    for event_id in (own, again):
        assert (await people.alice.get(f"/rooms/{room_id}/event/{event_id}"))["content"] == {}


async def test_an_annotation_is_sent_once(people: SimpleNamespace) -> None:
    room_id = await make(people.alice)
    target = await send(people.alice, room_id, "x")
    body = {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": "+"}}
    first = await people.alice.put(f"/rooms/{room_id}/send/m.reaction/r1", body)
    assert await people.alice.put(f"/rooms/{room_id}/send/m.reaction/r1", body) == first
    refusal = await people.alice.refused("PUT", f"/rooms/{room_id}/send/m.reaction/r2", body)
    assert refusal == (400, "M_DUPLICATE_ANNOTATION")


# State


async def test_state_that_is_there_already_answers_its_event(people: SimpleNamespace) -> None:
    room_id = await make(people.alice)
    path = f"/rooms/{room_id}/state/m.room.name"
    first = await people.alice.put(path, {"name": "A"})
    assert await people.alice.put(path + "/", {"name": "A"}) == first
    second = await people.alice.put(path, {"name": "B"})
    assert second != first
    event = await people.alice.get(path, format="event")
    assert event["unsigned"]["prev_content"] == {"name": "A"}
    assert event["unsigned"]["replaces_state"] == first["event_id"]


async def test_member_state_takes_the_membership_path(people: SimpleNamespace) -> None:
    room_id = await make(people.alice, preset="public_chat")
    path = f"/rooms/{room_id}/state/m.room.member"
    joined = await people.bob.put(f"{path}/{BOB}", {"membership": "join"})
    assert await people.bob.get(f"{path}/{BOB}") == {"membership": "join", "displayname": "Bob"}
    assert await people.bob.put(f"{path}/{BOB}", {"membership": "join"}) == joined
    await people.bob.put(f"{path}/{BOB}", {"membership": "join", "displayname": "Bobby"})
    assert (await people.bob.get(f"{path}/{BOB}"))["displayname"] == "Bobby"
    assert (await people.bob.get("/joined_rooms"))["joined_rooms"] == [room_id]
    assert await people.bob.refused("PUT", f"{path}/{CAROL}", {"membership": "join"}) == (403, "M_FORBIDDEN")
    assert await people.bob.refused("PUT", f"{path}/{BOB}", {"membership": "gone"}) == (400, "M_BAD_JSON")
    await people.alice.put(f"{path}/{CAROL}", {"membership": "invite"})
    assert (await people.alice.get(f"{path}/{CAROL}"))["displayname"] == "Carol"
    await people.bob.put(f"{path}/{BOB}", {"membership": "leave"})
    assert (await people.bob.get("/joined_rooms"))["joined_rooms"] == []


async def test_canonical_aliases_are_checked(people: SimpleNamespace) -> None:
    room_id = await make(people.alice)
    path = f"/rooms/{room_id}/state/m.room.canonical_alias"
    assert await people.alice.refused("PUT", path, {"alias": f"#no:{SERVER}"}) == (400, "M_BAD_ALIAS")
    assert await people.alice.refused("PUT", path, {"alias": "nonsense"}) == (400, "M_INVALID_PARAM")
    assert await people.alice.refused("PUT", path, {"alt_aliases": "#x:y"}) == (400, "M_INVALID_PARAM")
    await people.alice.put(f"/directory/room/%23yes:{SERVER}", {"room_id": room_id})
    await people.alice.put(path, {"alias": f"#yes:{SERVER}"})
    await people.alice.put(path, {"alias": f"#yes:{SERVER}", "alt_aliases": []})
    status, _ = await people.alice.call("DELETE", f"/directory/room/%23yes:{SERVER}")
    assert status == 200
    assert await people.alice.get(path) == {"alt_aliases": []}


async def test_aliases_that_a_room_names_already_are_not_checked_again(
    people: SimpleNamespace, accounts: Database
) -> None:
    room_id = await make(people.alice, room_alias_name="old")
    await accounts.execute("DELETE FROM accounts.aliases")
    path = f"/rooms/{room_id}/state/m.room.canonical_alias"
    await people.alice.put(path, {"alias": f"#old:{SERVER}", "alt_aliases": [f"#old:{SERVER}"]})


# Memberships


async def test_an_invite_is_in_the_user_s_log_before_the_answer(people: SimpleNamespace, accounts: Database) -> None:
    room_id = await make(people.alice, name="Party")
    await people.alice.post(f"/rooms/{room_id}/invite", {"user_id": BOB, "reason": "come"})
    async with accounts.reading() as tx:
        (entry,) = await user_log.list_after(tx, BOB, 0)
        (row,) = await user_rooms.list_rooms(tx, BOB)
    body = orjson.loads(entry.body or b"")
    assert (entry.room_id, body["membership"], row.membership) == (room_id, "invite", "invite")
    stripped = {(event["type"], event["state_key"]): event["content"] for event in body["state"]}
    assert stripped["m.room.member", BOB]["reason"] == "come"
    assert ("m.room.create", "") in stripped
    assert stripped["m.room.name", ""] == {"name": "Party"}


async def test_join_when_joined_is_no_event(people: SimpleNamespace) -> None:
    room_id = await make(people.alice, preset="public_chat")
    before = len(await timeline(people.alice, room_id))
    for path in (f"/rooms/{room_id}/join", f"/join/{room_id}"):
        assert await people.alice.post(path) == {"room_id": room_id}
    assert len(await timeline(people.alice, room_id)) == before


async def test_who_may_join(people: SimpleNamespace) -> None:
    room_id = await make(people.alice)
    assert await people.bob.refused("POST", f"/rooms/{room_id}/join") == (403, "M_FORBIDDEN")
    assert await people.bob.refused("POST", "/join/!unknown:far.org") == (404, "M_NOT_FOUND")
    assert await people.bob.refused("POST", "/join/%23no:here.org") == (404, "M_NOT_FOUND")
    assert await people.bob.refused("POST", "/join/nonsense") == (400, "M_INVALID_PARAM")
    await people.alice.post(f"/rooms/{room_id}/invite", {"user_id": BOB})
    await people.bob.post(f"/rooms/{room_id}/join", {"reason": "hi"})
    content = await people.bob.get(f"/rooms/{room_id}/state/m.room.member/{BOB}")
    assert content == {"membership": "join", "displayname": "Bob", "reason": "hi"}


async def test_who_may_be_invited(people: SimpleNamespace) -> None:
    room_id = await make(people.alice, preset="public_chat")
    invite = f"/rooms/{room_id}/invite"
    assert await people.bob.refused("POST", invite, {"user_id": CAROL}) == (403, "M_FORBIDDEN")
    assert await people.alice.refused("POST", invite, {"user_id": ALICE}) == (403, "M_FORBIDDEN")
    assert await people.alice.refused("POST", invite, {"user_id": "bob"}) == (400, "M_INVALID_PARAM")
    assert await people.alice.refused("POST", invite, {}) == (400, "M_MISSING_PARAM")
    assert await people.alice.refused("POST", invite, {"medium": "email"}) == (400, "M_MISSING_PARAM")
    await people.alice.post(invite, {"user_id": BOB})
    await people.alice.post(invite, {"user_id": BOB})
    members = [event for event in await timeline(people.alice, room_id) if event.get("state_key") == BOB]
    assert len(members) == 1
    await people.bob.post(f"/rooms/{room_id}/join")
    assert await people.alice.refused("POST", invite, {"user_id": BOB}) == (403, "M_FORBIDDEN")
    await people.alice.post(f"/rooms/{room_id}/ban", {"user_id": BOB})
    assert await people.alice.refused("POST", invite, {"user_id": BOB}) == (403, "M_FORBIDDEN")
    assert await people.bob.refused("POST", f"/rooms/{room_id}/join") == (403, "M_FORBIDDEN")


async def test_kick_ban_unban_leave(people: SimpleNamespace) -> None:
    room_id = await make(people.alice, preset="public_chat")
    await people.bob.post(f"/rooms/{room_id}/join")
    kick = f"/rooms/{room_id}/kick"
    assert await people.bob.refused("POST", kick, {"user_id": ALICE}) == (403, "M_FORBIDDEN")
    await people.alice.post(kick, {"user_id": BOB, "reason": "noise"})
    assert await people.alice.get(f"/rooms/{room_id}/state/m.room.member/{BOB}") == {
        "membership": "leave",
        "reason": "noise",
    }
    assert await people.alice.refused("POST", kick, {"user_id": BOB}) == (403, "M_FORBIDDEN")
    assert await people.alice.refused("POST", f"/rooms/{room_id}/unban", {"user_id": BOB}) == (403, "M_BAD_STATE")
    await people.alice.post(f"/rooms/{room_id}/ban", {"user_id": BOB})
    await people.alice.post(f"/rooms/{room_id}/unban", {"user_id": BOB})
    await people.bob.post(f"/rooms/{room_id}/join")
    assert await people.bob.refused("POST", f"/rooms/{room_id}/forget") == (400, "M_UNKNOWN")
    await people.bob.post(f"/rooms/{room_id}/leave")
    await people.bob.post(f"/rooms/{room_id}/leave")
    await people.bob.post(f"/rooms/{room_id}/forget")
    assert await people.carol.refused("POST", f"/rooms/{room_id}/leave") == (403, "M_FORBIDDEN")
    assert await people.carol.refused("POST", "/rooms/!no:here.org/leave") == (404, "M_NOT_FOUND")


async def test_an_invite_can_be_rejected(people: SimpleNamespace) -> None:
    room_id = await make(people.alice, invite=[BOB])
    await people.bob.post(f"/rooms/{room_id}/leave")
    assert await people.bob.refused("GET", f"/rooms/{room_id}/state") == (403, "M_FORBIDDEN")
    assert await people.bob.refused("POST", f"/rooms/{room_id}/join") == (403, "M_FORBIDDEN")


async def test_knocking(people: SimpleNamespace) -> None:
    rule = {"type": "m.room.join_rules", "content": {"join_rule": "knock"}}
    room_id = await make(people.alice, initial_state=[rule])
    assert await people.bob.post(f"/knock/{room_id}", {"reason": "please"}) == {"room_id": room_id}
    assert await people.bob.post(f"/knock/{room_id}") == {"room_id": room_id}
    content = await people.alice.get(f"/rooms/{room_id}/state/m.room.member/{BOB}")
    assert content == {"membership": "knock", "displayname": "Bob", "reason": "please"}
    await people.alice.post(f"/rooms/{room_id}/invite", {"user_id": BOB})
    await people.bob.post(f"/rooms/{room_id}/join")
    other = await make(people.alice)
    assert await people.bob.refused("POST", f"/knock/{other}") == (403, "M_FORBIDDEN")


async def test_restricted_rooms_let_members_of_another_room_in(people: SimpleNamespace) -> None:
    space = await make(people.alice, preset="public_chat")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": space}]}
    room_id = await make(people.alice, initial_state=[{"type": "m.room.join_rules", "content": rule}])
    assert await people.bob.refused("POST", f"/rooms/{room_id}/join") == (403, "M_FORBIDDEN")
    await people.bob.post(f"/rooms/{space}/join")
    await people.bob.post(f"/rooms/{room_id}/join")
    content = await people.bob.get(f"/rooms/{room_id}/state/m.room.member/{BOB}")
    assert content["join_authorised_via_users_server"] == ALICE


async def test_guests_join_where_they_may_and_make_nothing(people: SimpleNamespace, http: httpx.AsyncClient) -> None:
    guest = Client(http, CAROL, "GUEST")
    closed = await make(people.alice, preset="public_chat")
    assert await guest.refused("POST", f"/rooms/{closed}/join") == (403, "M_GUEST_ACCESS_FORBIDDEN")
    rules = [
        {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}},
        {"type": "m.room.join_rules", "content": {"join_rule": "public"}},
    ]
    room_id = await make(people.alice, initial_state=rules)
    await guest.post(f"/rooms/{room_id}/join")
    await send(guest, room_id, "hello")
    for path in (
        "/createRoom",
        f"/knock/{room_id}",
        *(f"/rooms/{room_id}/{verb}" for verb in ("invite", "kick", "ban")),
    ):
        assert await guest.refused("POST", path, {"user_id": BOB}) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    path = f"/rooms/{closed}/state/m.room.member/{CAROL}"
    assert await guest.refused("PUT", path, {"membership": "join"}) == (403, "M_GUEST_ACCESS_FORBIDDEN")


# Directory, receipts, typing


async def test_aliases(people: SimpleNamespace) -> None:
    room_id = await make(people.alice, preset="public_chat")
    path = f"/directory/room/%23pub:{SERVER}"
    assert await people.bob.refused("PUT", path, {"room_id": room_id}) == (403, "M_FORBIDDEN")
    await people.alice.put(path, {"room_id": room_id})
    assert (await people.alice.refused("PUT", path, {"room_id": room_id}))[0] == 409
    assert await people.alice.get(f"/rooms/{room_id}/aliases") == {"aliases": [f"#pub:{SERVER}"]}
    assert await people.bob.refused("GET", f"/rooms/{room_id}/aliases") == (403, "M_FORBIDDEN")
    assert await people.bob.refused("DELETE", path) == (403, "M_FORBIDDEN")
    assert (await people.alice.call("DELETE", path))[0] == 200
    assert await people.alice.refused("DELETE", path) == (404, "M_NOT_FOUND")
    assert await people.alice.refused("GET", path) == (404, "M_NOT_FOUND")
    assert await people.alice.refused("PUT", "/directory/room/%23x:far.org", {"room_id": room_id}) == (
        400,
        "M_INVALID_PARAM",
    )


async def test_the_published_directory(people: SimpleNamespace) -> None:
    rooms = [await make(people.alice, visibility="public", name=f"Room {number}") for number in range(3)]
    await make(people.alice, preset="public_chat", name="Unlisted")
    await people.bob.post(f"/rooms/{rooms[1]}/join")
    await people.alice.put(f"/directory/list/room/{rooms[1]}", {"visibility": "public"})
    everything = await people.bob.get("/publicRooms")
    assert everything["total_room_count_estimate"] == 3
    assert [line["num_joined_members"] for line in everything["chunk"]] == [2, 1, 1]
    assert everything["chunk"][0]["name"] == "Room 1"
    assert everything["chunk"][0]["join_rule"] == "public"
    first = await people.bob.get("/publicRooms", limit=2)
    second = await people.bob.get("/publicRooms", limit=2, since=first["next_batch"])
    assert [line["room_id"] for line in first["chunk"] + second["chunk"]] == [
        line["room_id"] for line in everything["chunk"]
    ]
    assert "next_batch" not in second
    back = await people.bob.get("/publicRooms", limit=2, since=second["prev_batch"])
    assert back["chunk"] == first["chunk"]
    found = await people.bob.post("/publicRooms", {"filter": {"generic_search_term": "room 2"}})
    assert [line["room_id"] for line in found["chunk"]] == [rooms[2]]
    listing = f"/directory/list/room/{rooms[0]}"
    assert await people.bob.refused("PUT", listing, {"visibility": "private"}) == (403, "M_FORBIDDEN")
    await people.alice.put(listing, {"visibility": "private"})
    assert await people.bob.get(listing) == {"visibility": "private"}
    assert await people.bob.refused("GET", "/publicRooms", since="x") == (400, "M_INVALID_PARAM")
    everywhere = {"include_all_networks": True}
    assert len((await people.bob.post("/publicRooms", everywhere))["chunk"]) == len(everything["chunk"]) - 1
    assert (await people.bob.post("/publicRooms", {"third_party_instance_id": "irc"}))["chunk"] == []
    both = {**everywhere, "third_party_instance_id": "irc"}
    assert await people.bob.refused("POST", "/publicRooms", both) == (400, "M_INVALID_PARAM")
    wrong = {"include_all_networks": "yes"}
    assert await people.bob.refused("POST", "/publicRooms", wrong) == (400, "M_BAD_JSON")
    path = f"/directory/list/appservice/irc/{everything['chunk'][0]['room_id']}"
    assert await people.alice.refused("PUT", path, {"visibility": "public"}) == (403, "M_FORBIDDEN")


async def test_receipts_and_markers(people: SimpleNamespace, gateway: SimpleNamespace, accounts: Database) -> None:
    room_id = await make(people.alice)
    event_id = await send(people.alice, room_id, "x")
    await people.alice.post(f"/rooms/{room_id}/receipt/m.read/{event_id}")
    await people.alice.post(f"/rooms/{room_id}/read_markers", {"m.fully_read": event_id, "m.read.private": event_id})
    await gateway.receipts.send_due(everything=True)
    rows = await accounts.fetch("SELECT receipt_type, user_id, event_id FROM rooms.receipts")
    assert [tuple(row) for row in rows] == [("m.read", ALICE, event_id)]
    stored = await accounts.fetch("SELECT receipt_type FROM accounts.read_positions ORDER BY 1")
    assert [row[0] for row in stored] == ["m.fully_read", "m.read", "m.read.private"]
    path = f"/rooms/{room_id}/receipt"
    for body in ({"thread_id": ""}, {"thread_id": 5}, {"thread_id": "$other"}, {"thread_id": "nonsense"}):
        refusal = await people.alice.refused("POST", f"{path}/m.read/{event_id}", body)
        assert refusal == (400, "M_INVALID_PARAM")
    assert (await people.alice.refused("POST", f"{path}/m.fully_read/{event_id}", {"thread_id": "main"}))[0] == 400
    assert (await people.alice.refused("POST", f"{path}/m.seen/{event_id}"))[0] == 400
    assert (await people.bob.refused("POST", f"{path}/m.read/{event_id}"))[0] == 403
    await people.alice.post(f"{path}/m.read/{event_id}", {"thread_id": "main"})


async def test_a_receipt_that_is_ahead_of_its_event_waits(
    people: SimpleNamespace, gateway: SimpleNamespace, accounts: Database
) -> None:
    room_id = await make(people.alice)
    await people.alice.post(f"/rooms/{room_id}/receipt/m.read/$early")
    await gateway.receipts.settle_early()
    assert await accounts.fetch("SELECT 1 FROM accounts.read_positions") == []
    await accounts.execute(
        "UPDATE rooms.events SET event_id = '$early' WHERE room_id = $1 AND type = 'm.room.guest_access'", room_id
    )
    await gateway.receipts.settle_early()
    rows = await accounts.fetch("SELECT user_id, event_id FROM accounts.read_positions")
    assert [tuple(row) for row in rows] == [(ALICE, "$early")]


async def test_typing(people: SimpleNamespace, gateway: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    room_id = await make(people.alice)
    heard: list[tuple[UserId, int]] = []

    async def hear(change: Any) -> None:
        heard.append((change.user_id, change.timeout_ms))

    monkeypatch.setattr(gateway.fanout, "publish_typing", hear)
    path = f"/rooms/{room_id}/typing/{ALICE}"
    await people.alice.put(path, {"typing": True, "timeout": 5_000})
    await people.alice.put(path, {"typing": True, "timeout": 10**9})
    await people.alice.put(path, {"typing": False})
    assert heard == [(ALICE, 5_000), (ALICE, 120_000), (ALICE, 0)]
    assert await people.alice.refused("PUT", path, {"typing": "yes"}) == (400, "M_BAD_JSON")
    assert await people.bob.refused("PUT", path, {"typing": True}) == (403, "M_FORBIDDEN")
    assert await people.bob.refused("PUT", f"/rooms/{room_id}/typing/{BOB}", {"typing": True}) == (403, "M_FORBIDDEN")
