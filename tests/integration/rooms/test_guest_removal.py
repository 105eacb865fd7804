"""Rooms that close themselves to guests, from the log to the leave. Spec: C-S API §Guest Access."""

from types import SimpleNamespace

import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL

from services.gateway.guest_removal import remove_all
from services.projector.guest_access import CONSUMER, GuestAccessStep
from tessera.record_consumer import RecordConsumer
from tessera.storage import users
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards


@pytest.fixture
def consumer(accounts: Database, shards: RoomShards, gateway: SimpleNamespace) -> RecordConsumer:
    return RecordConsumer(CONSUMER, GuestAccessStep(), gateway.records, accounts, shards, gateway.clock)


@pytest.fixture
async def people(accounts: Database, writer: object, http: object) -> list[Client]:
    """Alice; Bob, who is an ordinary user; Carol, who is a guest."""
    async with accounts.transaction() as tx:
        for user_id in (ALICE, BOB, CAROL):
            await users.add_user(tx, user_id, password_hash=None, displayname=None, now_ms=1, is_guest=user_id == CAROL)
    return [Client(http, name, device) for name, device in ((ALICE, "A"), (BOB, "B"), (CAROL, "GUEST"))]  # type: ignore[arg-type]


async def memberships(alice: Client, room_id: str) -> dict[str, str]:
    chunk = (await alice.get(f"/rooms/{room_id}/members"))["chunk"]
    return {event["state_key"]: event["content"]["membership"] for event in chunk}


async def owed(accounts: Database) -> int:
    counted: int = await accounts.fetchval("SELECT count(*) FROM accounts.guest_removals")
    return counted


async def test_guests_leave_and_others_stay(
    people: list[Client], consumer: RecordConsumer, gateway: SimpleNamespace, accounts: Database
) -> None:
    alice, bob, carol = people
    welcome = [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}]
    rooms = [
        (await alice.post("/createRoom", {"preset": "public_chat", "initial_state": welcome}))["room_id"]
        for _ in range(2)
    ]
    for room_id in rooms:
        await bob.post(f"/join/{room_id}")
        await carol.post(f"/join/{room_id}")
    closed, open_again = rooms
    for room_id in rooms:
        await alice.put(f"/rooms/{room_id}/state/m.room.guest_access", {"guest_access": "forbidden"})
    await alice.put(f"/rooms/{open_again}/state/m.room.guest_access", {"guest_access": "can_join"})
    await consumer.catch_up()
    for _ in range(2):  # a repetition changes nothing
        await remove_all(gateway.rooms)
    assert await memberships(alice, closed) == {ALICE: "join", BOB: "join", CAROL: "leave"}
    assert await memberships(alice, open_again) == {ALICE: "join", BOB: "join", CAROL: "join"}
    assert await carol.refused("POST", f"/join/{closed}") == (403, "M_GUEST_ACCESS_FORBIDDEN")
    # Joins that were on their way may still come: the debt is kept for a while.
    assert await owed(accounts) == 2
    await accounts.execute("UPDATE accounts.guest_removals SET owed_since = now() - interval '61 seconds'")
    await remove_all(gateway.rooms)
    assert await owed(accounts) == 0
    await GuestAccessStep().look_at_partition(accounts, gateway.shards.partition_of(open_again))
    assert await accounts.fetchval("SELECT room_id FROM accounts.guest_removals") == open_again


async def test_other_state_owes_nothing(people: list[Client], consumer: RecordConsumer, accounts: Database) -> None:
    alice = people[0]
    welcome = [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}]
    room_id = (await alice.post("/createRoom", {"initial_state": welcome}))["room_id"]
    await alice.put(f"/rooms/{room_id}/state/m.room.topic", {"topic": "tea"})
    await alice.put(f"/rooms/{room_id}/state/m.room.guest_access/other", {"guest_access": "forbidden"})
    await consumer.catch_up()
    assert await owed(accounts) == 0
