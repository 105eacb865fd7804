"""Purges of a room's history and what they leave. Spec: none; DESIGN.md section 4."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, SERVER

from matrixcore.identifiers import RoomId
from services.gateway import purge_history
from services.gateway.redacted_originals import drop_old
from tessera.clock import SystemClock
from tessera.records import RecordKind
from tessera.storage import purging, sync_reads, users
from tessera.storage.database import Database
from tessera.storage.records import list_records
from tessera.storage.sync_reads import KnownRoom
from tessera.storage.sync_unread import count

ADMIN = "/_synapse/admin/v1"


@pytest.fixture
async def people(accounts: Database, writer: object, http: httpx.AsyncClient) -> list[Client]:
    """Alice, who is an administrator, and Bob."""
    async with accounts.transaction() as tx:
        for user_id in (ALICE, BOB):
            await users.add_user(tx, user_id, password_hash=None, displayname=None, now_ms=1)
    return [Client(http, ALICE, "ADMIN"), Client(http, BOB, "B")]


async def admin(client: Client, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    reply = await client._http.request(method, ADMIN + path, json=body, headers=client._headers)
    return reply.status_code, reply.json()


async def say(client: Client, room_id: str, *texts: str, **content: Any) -> list[str]:
    paths = [f"/rooms/{room_id}/send/m.room.message/{text}" for text in texts]
    return [
        (await client.put(path, {"msgtype": "m.text", "body": text, **content}))["event_id"]
        for path, text in zip(paths, texts, strict=True)
    ]


async def make_room(people: list[Client]) -> str:
    alice, bob = people
    room_id: str = (await alice.post("/createRoom", {"preset": "public_chat", "room_version": "11"}))["room_id"]
    await bob.post(f"/join/{room_id}")
    return room_id


async def shown(client: Client, room_id: str) -> list[str]:
    chunk = (await client.get(f"/rooms/{room_id}/messages", dir="b", limit=100))["chunk"]
    return [event["content"]["body"] for event in reversed(chunk) if event["type"] == "m.room.message"]


async def purge(gateway: SimpleNamespace, alice: Client, room_id: str, **body: Any) -> str:
    status, reply = await admin(alice, "POST", f"/purge_history/{room_id}", {"delete_local_events": True, **body})
    assert status == 200, reply
    await purge_history.purge_all(gateway.rooms, SERVER, SystemClock())
    status, standing = await admin(alice, "GET", f"/purge_history_status/{reply['purge_id']}")
    assert status == 200, standing
    return str(standing["status"])


async def test_old_messages_go_and_state_stays(
    people: list[Client], gateway: SimpleNamespace, accounts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = people
    room_id = await make_room(people)
    state = await alice.get(f"/rooms/{room_id}/state")
    sent = await say(bob, room_id, *"abcd")
    await alice.put(f"/rooms/{room_id}/state/m.room.topic", {"topic": "in between"})
    sent += await say(bob, room_id, *"efgh")
    assert await purge(gateway, alice, room_id, purge_up_to_event_id=sent[6]) == "complete"
    # The last event that was to go stays: the counters are computed from it.
    assert await shown(alice, room_id) == ["f", "g", "h"]
    assert len(await alice.get(f"/rooms/{room_id}/state")) == len(state) + 1
    assert await alice.refused("GET", f"/rooms/{room_id}/event/{sent[0]}") == (404, "M_NOT_FOUND")
    partition = gateway.shards.partition_of(RoomId(room_id))
    async with accounts.reading() as tx:
        records = await list_records(tx, partition, 0, 1 << 40, 1_000)
    assert [record.position for record in records] == list(range(1, len(records) + 1))
    kinds = [record.kind for record in records]
    assert kinds.count(RecordKind.PURGED) == 5 + 1
    assert records[-1].kind is RecordKind.PURGED
    assert await say(bob, room_id, "after")
    assert await shown(bob, room_id) == ["f", "g", "h", "after"]


async def test_older_tokens_are_limited_and_nothing_deleted_is_unread(
    people: list[Client], gateway: SimpleNamespace, accounts: Database
) -> None:
    alice, bob = people
    room = RoomId(await make_room(people))
    partition = gateway.shards.partition_of(room)
    joined_at = int(await accounts.fetchval("SELECT head FROM rooms.partitions WHERE partition = $1", partition))
    sent = await say(bob, room, *"abcdef")
    root = sent[0]
    threaded = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    await say(bob, room, "t1", "t2", **threaded)
    bound = await say(bob, room, "g")
    await say(bob, room, "t3", **threaded)

    async def unread() -> dict[Any, int]:
        async with accounts.reading() as tx:
            return {one.thread_root: one.notify for one in await count(tx, ALICE, [(room, joined_at, joined_at)], [])}

    assert await unread() == {None: 7, root: 3}
    assert await purge(gateway, alice, room, purge_up_to_event_id=bound[0]) == "complete"
    assert await unread() == {None: 1, root: 1}
    known = {room: KnownRoom(-1, -1, 0)}
    async with accounts.reading() as tx:
        _, rooms = await sync_reads.list_sync_rooms(tx, ALICE, known, [partition])
    assert rooms[room].purged_anchor > joined_at
    assert rooms[room].purged_anchor < rooms[room].steps[0].order.anchor + 100


async def test_local_events_are_spared_unless_they_are_to_go(people: list[Client], gateway: SimpleNamespace) -> None:
    alice, bob = people
    room_id = await make_room(people)
    sent = await say(bob, room_id, *"abcd")
    body = {"purge_up_to_event_id": sent[3], "delete_local_events": False}
    assert await purge(gateway, alice, room_id, **body) == "complete"
    assert await shown(bob, room_id) == list("abcd")
    ts = gateway.clock.now_ms() + 1
    status = await purge(gateway, alice, room_id, purge_up_to_ts=ts)
    assert status == "complete"
    assert await shown(bob, room_id) == ["d"]


async def test_a_purge_that_was_interrupted_goes_on(
    people: list[Client], gateway: SimpleNamespace, accounts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = people
    room_id = await make_room(people)
    sent = await say(bob, room_id, *"abcdefghij")
    monkeypatch.setattr(purging, "_DELETE_SLICE", purging._DELETE_SLICE.replace(f"LIMIT {purging.SLICE}", "LIMIT 3"))
    delete, slices = purging.delete_slice, 0

    async def killed(*args: Any, **options: Any) -> Any:
        nonlocal slices
        slices += 1
        if slices == 4:
            raise ConnectionResetError
        return await delete(*args, **options)

    monkeypatch.setattr(purging, "delete_slice", killed)
    assert await purge(gateway, alice, room_id, purge_up_to_event_id=sent[9]) == "active"
    assert await admin(alice, "POST", f"/purge_history/{room_id}", {"purge_up_to_ts": 1 << 50}) == (
        400,
        {"errcode": "M_UNKNOWN", "error": f"History purge already in progress for {room_id}"},
    )
    await accounts.execute("UPDATE accounts.room_purges SET claimed_until = now()")
    await purge_history.purge_all(gateway.rooms, SERVER, SystemClock())
    assert await accounts.fetchval("SELECT phase FROM accounts.room_purges") == "complete"
    assert await shown(bob, room_id) == ["i", "j"]


async def test_who_may_purge_and_what(people: list[Client], gateway: SimpleNamespace) -> None:
    alice, bob = people
    room_id = await make_room(people)
    path = f"/purge_history/{room_id}"
    assert (await admin(bob, "POST", path, {"purge_up_to_ts": 1}))[0] == 403
    assert (await admin(bob, "GET", "/purge_history_status/x"))[0] == 403
    assert (await admin(alice, "GET", "/purge_history_status/x"))[0] == 404
    for body, status in (
        ({}, 400),
        ({"purge_up_to_ts": "1"}, 400),
        ({"purge_up_to_event_id": 1}, 400),
        ({"purge_up_to_ts": 1, "delete_local_events": 1}, 400),
        ({"purge_up_to_ts": 1}, 404),
        ({"purge_up_to_event_id": "$unknown"}, 404),
    ):
        assert (await admin(alice, "POST", path, body))[0] == status, body
    assert (await admin(alice, "POST", f"/purge_history/!no:{SERVER}", {"purge_up_to_ts": 1}))[0] == 404


async def test_originals_of_redacted_events_are_kept_for_a_while(
    people: list[Client], gateway: SimpleNamespace, accounts: Database
) -> None:
    bob = people[1]
    room_id = await make_room(people)
    (event_id,) = await say(bob, room_id, "oops")
    await bob.put(f"/rooms/{room_id}/redact/{event_id}/1", {})
    redacted_ms = await accounts.fetchval("SELECT received_ms FROM rooms.events WHERE type = 'm.room.redaction'")
    original = "SELECT original_pdu FROM rooms.events WHERE event_id = $1"
    assert await drop_old(accounts, redacted_ms) == 0
    assert b"oops" in await accounts.fetchval(original, event_id)
    assert await drop_old(accounts, redacted_ms + 1) == 1
    assert await accounts.fetchval(original, event_id) is None
