"""Limits on what changes rooms, by user and by room. Spec: C-S API §Rate limiting."""

from types import SimpleNamespace

import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL

from tessera.config import Settings
from tessera.http.limits import LocalRateLimits, Rate
from tessera.storage import users
from tessera.storage.database import Database

ONCE = Rate(0.1, 1)
LIMITED = (429, "M_LIMIT_EXCEEDED")


@pytest.fixture
async def people(accounts: Database, writer: object, http: object) -> list[Client]:
    """Alice, Bob and Carol, each with a device."""
    async with accounts.transaction() as tx:
        for user_id in (ALICE, BOB, CAROL):
            await users.add_user(tx, user_id, password_hash=None, displayname=None, now_ms=1)
    return [Client(http, user_id, "D") for user_id in (ALICE, BOB, CAROL)]  # type: ignore[arg-type]


def limit(gateway: SimpleNamespace, **rates: Rate) -> None:
    gateway.limits = LocalRateLimits(gateway.clock, {name.replace("__", "."): rate for name, rate in rates.items()})


async def test_joins_are_bounded_by_room(gateway: SimpleNamespace, people: list[Client]) -> None:
    alice, bob, carol = people
    rooms = [(await alice.post("/createRoom", {"preset": "public_chat"}))["room_id"] for _ in range(2)]
    limit(gateway, rc_joins_per_room=ONCE)
    await bob.post(f"/join/{rooms[0]}")
    assert await carol.refused("POST", f"/join/{rooms[0]}") == LIMITED
    await carol.post(f"/join/{rooms[1]}")


async def test_invites_of_a_new_room_count(gateway: SimpleNamespace, people: list[Client]) -> None:
    alice = people[0]
    limit(gateway, rc_invites__per_issuer=Rate(0.1, 2))
    await alice.post("/createRoom", {})
    room_id = (await alice.post("/createRoom", {"invite": [BOB, CAROL]}))["room_id"]
    assert await alice.refused("POST", "/createRoom", {"invite": [BOB]}) == LIMITED
    await alice.post(f"/rooms/{room_id}/kick", {"user_id": BOB})
    assert await alice.refused("POST", f"/rooms/{room_id}/invite", {"user_id": BOB}) == LIMITED


async def test_moderators_may_have_a_limit_of_their_own(gateway: SimpleNamespace, people: list[Client]) -> None:
    alice, bob, _ = people
    room_id = (await alice.post("/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.post(f"/join/{room_id}")
    send = f"/rooms/{room_id}/send/m.room.message"
    own = (await alice.put(f"{send}/1", {"body": "mine"}))["event_id"]
    spam = [(await bob.put(f"{send}/{number}", {"body": "spam"}))["event_id"] for number in range(3)]
    redact = f"/rooms/{room_id}/redact"
    limit(gateway, rc_message=ONCE, rc_admin_redaction=Rate(1, 2))
    await alice.put(f"{redact}/{spam[0]}/1", {})
    assert await alice.refused("PUT", f"{redact}/{spam[1]}/2", {}) == LIMITED, "no limit of their own is set"
    gateway.settings = Settings.for_tests(rc_admin_redaction={"per_second": 1, "burst_count": 2})
    for number in (1, 2):
        await alice.put(f"{redact}/{spam[number]}/3{number}", {})
    assert await alice.refused("PUT", f"{redact}/{spam[0]}/4", {}) == LIMITED
    assert await alice.refused("PUT", f"{redact}/{own}/5", {}) == LIMITED, "rc_message is used up"
