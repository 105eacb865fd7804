"""The list of notifications. Spec: C-S API §Listing Notifications."""

from typing import Any

import httpx
import orjson
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import EventId, RoomId, UserId
from services.gateway import notified_events
from tessera.storage import account_data, push_rules, read_positions, user_rooms
from tessera.storage.database import Database
from tessera.storage.read_positions import ReadPosition
from tessera.storage.user_rooms import MembershipChange

OTHERS = [RoomId(f"!other{number}:{SERVER}") for number in range(3)]


@pytest.fixture
async def alice(http: httpx.AsyncClient, room: SeededRoom, accounts: Database) -> Client:
    await room.member(BOB, "join")
    await listed(accounts, ALICE, ROOM)
    return Client(http, ALICE, "A")


async def listed(accounts: Database, user_id: UserId, room_id: RoomId, membership: str = "join") -> None:
    change = MembershipChange(user_id, room_id, membership, EventId("$any"), user_id, 0, 1, 1)
    async with accounts.transaction() as tx:
        await user_rooms.apply_changes(tx, [change])


async def listing(client: Client, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/notifications", **query))["notifications"]
    return found


def bodies(notifications: list[dict[str, Any]]) -> list[str]:
    return [one["event"]["content"].get("body", one["event"]["type"]) for one in notifications]


def mention(*users: str) -> dict[str, Any]:
    return {"m.mentions": {"user_ids": list(users)}}


async def test_messages_notify_newest_first_with_actions_and_whether_they_are_read(
    alice: Client, room: SeededRoom, accounts: Database
) -> None:
    await room.member(CAROL, "join")
    first = await room.message(BOB, "first")
    anchor = room.position
    await room.message(ALICE, "her own")
    await room.message(BOB, "a notice", msgtype="m.notice")
    await room.add("m.reaction", BOB, {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$x", "key": "+"}})
    await room.add("m.room.topic", BOB, {"topic": "state"}, state_key="")
    await room.message(BOB, "second", **mention(ALICE))
    found = await listing(alice)
    assert bodies(found) == ["second", "first"]
    assert found[0]["actions"] == [
        "notify",
        {"set_tweak": "sound", "value": "default"},
        {"set_tweak": "highlight", "value": True},
    ]
    assert found[1]["actions"] == ["notify"]
    assert found[1]["event"]["event_id"] == first.event_id
    assert "room_id" not in found[1]["event"]
    assert [one["room_id"] for one in found] == [ROOM, ROOM]
    assert [one["read"] for one in found] == [False, False]
    receipt = ReadPosition(ALICE, ROOM, "m.read", "", first.event_id, anchor, 0, 1)
    async with accounts.transaction() as tx:
        await read_positions.set_positions(tx, [receipt])
    assert [one["read"] for one in await listing(alice)] == [False, True]
    assert bodies(await listing(alice, only="highlight")) == ["second"]


async def test_invites_notify_and_what_came_before_the_join_does_not(
    alice: Client, room: SeededRoom, accounts: Database, http: httpx.AsyncClient
) -> None:
    await room.message(BOB, "before")
    await room.member(CAROL, "invite", sender=BOB)
    await listed(accounts, CAROL, ROOM, "invite")
    carol = Client(http, CAROL, "C")
    assert bodies(await listing(carol)) == ["m.room.member"]
    await room.message(BOB, "while she was invited")
    await room.member(CAROL, "join")
    await room.message(BOB, "after")
    await room.member(CAROL, "join", displayname="Carol")
    assert bodies(await listing(carol)) == ["after", "m.room.member"]
    await room.member(CAROL, "leave")
    assert await listing(carol) == []


async def test_own_rules_and_ignored_users_count(alice: Client, room: SeededRoom, accounts: Database) -> None:
    await room.member(CAROL, "join")
    await room.message(BOB, "nothing special")
    await room.message(CAROL, "from carol")
    await room.message(BOB, "with the Keyword in it")
    await room.add("org.custom.state", BOB, {}, state_key="x")
    rules = {
        "own": {
            "content": [
                {
                    "rule_id": "k",
                    "actions": ["notify", {"set_tweak": "highlight"}],
                    "pattern": "keyword",
                    "enabled": True,
                }
            ],
            "override": [
                {
                    "rule_id": "s",
                    "actions": ["notify"],
                    "conditions": [{"kind": "event_match", "key": "type", "pattern": "org.custom.state"}],
                    "enabled": True,
                }
            ],
        },
        "changes": [{"kind": "underride", "rule_id": ".m.rule.message", "enabled": False, "actions": None}],
    }
    async with accounts.transaction() as tx:
        await push_rules.set_rules(tx, ALICE, orjson.dumps(rules))
    assert bodies(await listing(alice)) == ["org.custom.state", "with the Keyword in it"]
    async with accounts.transaction() as tx:
        await push_rules.set_rules(tx, ALICE, b"{}")
        ignoring = orjson.dumps({"ignored_users": {CAROL: {}}})
        await account_data.set_content(tx, ALICE, account_data.GLOBAL, "m.ignored_user_list", ignoring)
    assert bodies(await listing(alice)) == ["with the Keyword in it", "nothing special"]


@pytest.mark.parametrize("looked_at", [4_000, 1])
async def test_pages_over_many_rooms_hold_each_notification_once(
    alice: Client, room: SeededRoom, accounts: Database, monkeypatch: pytest.MonkeyPatch, looked_at: int
) -> None:
    monkeypatch.setattr(notified_events, "LOOKED_AT", looked_at)
    monkeypatch.setattr(notified_events, "MIN_WINDOW", 3)
    rooms = [room, *[await SeededRoom(accounts, room_id).create() for room_id in OTHERS]]
    for one in rooms[1:]:
        await one.member(BOB, "join")
        await listed(accounts, ALICE, one.room_id)
    expected = []
    for number in range(24):
        one = rooms[number % 4] if number < 16 else rooms[0]
        one.position = max(each.position for each in rooms)  # so that later means later in all of them
        await one.message(BOB, str(number))
        expected.append(str(number))
        if number % 3 == 0:
            await one.message(BOB, "quiet", msgtype="m.notice")
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 5}
    for _ in range(60):
        reply = await alice.get("/notifications", **query)
        seen += bodies(reply["notifications"])
        if seen == ["23", "22", "21", "20", "19"]:
            await rooms[2].message(BOB, "meanwhile")  # is not in the pages that follow
        if "next_token" not in reply:
            break
        query["from"] = reply["next_token"]
    assert seen == expected[::-1]


async def test_bad_parameters_and_few_statements(alice: Client, room: SeededRoom, accounts: Database) -> None:
    for number in range(30):
        await room.message(BOB, str(number))
    async with accounts.counting() as count:
        assert len(await listing(alice)) == 20
    assert count.statements <= 8
    assert await alice.refused("GET", "/notifications", limit=0) == (400, "M_INVALID_PARAM")
    assert await alice.refused("GET", "/notifications", **{"from": "x"}) == (400, "M_INVALID_PARAM")
