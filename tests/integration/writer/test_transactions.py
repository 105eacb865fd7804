"""PUT /send: what is checked at once, what is stored, and what the room makes of it."""

from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from peer_world import PeerWorld, peer_world, resigned
from remote_room import THERE, THERE_KEY, RemoteRoom, remote_room
from writer_world import ALICE, KEY, SERVER, World

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import RoomId, ServerName
from matrixcore.signing import SigningKey
from services.federation_in import transactions
from tessera.commands import Append, NewEvent
from tessera.storage import received_transactions
from tessera.storage.database import Database


@pytest.fixture
async def peer(world: World, accounts: Database) -> AsyncIterator[PeerWorld]:
    async with world.writer(), peer_world(world, accounts) as made:
        yield made


@pytest.fixture(params=["1", "2", "6", "10", "11", "12"])
async def any_room(request: pytest.FixtureRequest, peer: PeerWorld) -> RemoteRoom:
    return await remote_room(peer.world, request.param)


@pytest.fixture
async def room(peer: PeerWorld) -> RemoteRoom:
    return await remote_room(peer.world)


async def test_events_of_a_transaction_get_into_the_room(peer: PeerWorld, any_room: RemoteRoom) -> None:
    events = [any_room.topic("one"), any_room.message("two"), any_room.topic("three")]
    assert await peer.send(*events) == {event.event_id: {} for event in events}
    await peer.settled(any_room, *events)
    assert await any_room.extremities() == {events[-1].event_id}
    assert (await any_room.current())["m.room.topic", ""] == events[-1].event_id


async def test_a_repeated_transaction_gets_the_stored_reply_and_changes_nothing(
    peer: PeerWorld, room: RemoteRoom, accounts: Database
) -> None:
    first = room.message("one")
    assert await peer.send(first, txn="t1") == {first.event_id: {}}
    await peer.settled(room, first)
    # Another content under the same ID is a repetition all the same.
    other = room.message("other")
    assert await peer.send(other, txn="t1") == {first.event_id: {}}
    assert await room.row(other) is None
    assert await accounts.fetchval("SELECT count(*) FROM accounts.received_transactions") == 1


async def test_an_event_that_comes_twice_is_there_once(peer: PeerWorld, room: RemoteRoom) -> None:
    event = room.message("one")
    await peer.send(event)
    await peer.send(event, event)
    await peer.settled(room, event)
    query = "SELECT count(*) FROM rooms.records WHERE room_id = $1 AND event_id = $2"
    assert await peer.world.shards.of_room(room.room_id).fetchval(query, room.room_id, event.event_id) == 1


async def test_wrongly_signed_events_are_refused_by_name(peer: PeerWorld, room: RemoteRoom) -> None:
    good = room.message("good")
    foreign = SigningKey("1", b"\x07" * 32)
    entry = {"ed25519:1": foreign.sign(b"something else")}
    bad = {**good.fields, "signatures": {THERE: entry}}
    results = (await peer.put_transaction(bad)).json()["pdus"]
    assert "wrong" in results[good.event_id]["error"] or "signed" in results[good.event_id]["error"]
    unsigned = {**good.fields, "signatures": {}}
    assert "signed" in (await peer.put_transaction(unsigned)).json()["pdus"][good.event_id]["error"]
    assert await room.row(good) is None
    assert await peer.send(good) == {good.event_id: {}}


async def test_events_of_other_servers_need_their_own_signature(peer: PeerWorld, room: RemoteRoom) -> None:
    """Whoever sends an event, its sender's server must have signed it."""
    forged = room.message("I am Alice", sender=ALICE)
    results = await peer.send(forged)
    assert "error" in results[forged.event_id]
    signed = resigned(forged, SERVER, KEY)
    assert await peer.send(signed) == {signed.event_id: {}}


async def test_a_wrong_content_hash_leaves_what_redaction_leaves(peer: PeerWorld, room: RemoteRoom) -> None:
    event = room.message("secret")
    changed = replace(event, fields={**event.fields, "content": {"msgtype": "m.text", "body": "lies"}})
    assert await peer.send(changed) == {event.event_id: {}}
    await peer.settled(room, event)
    assert orjson.loads((await room.row(event))["pdu"])["content"] == {}


async def test_a_denied_server_is_told_so_for_each_event(peer: PeerWorld, room: RemoteRoom) -> None:
    acl = {"allow": ["*"], "deny": ["there.*"], "allow_ip_literals": False}
    await peer.world.accepted(room.room_id, Append(NewEvent("m.room.server_acl", "", acl)))
    events = [room.message("one"), room.message("two")]
    results = await peer.send(*events)
    assert set(results) == {event.event_id for event in events}
    assert all("ACL" in result["error"] for result in results.values())
    assert await room.inbox_states() == []


async def test_events_of_unknown_rooms_are_dropped(peer: PeerWorld, room: RemoteRoom) -> None:
    good = room.message("good")
    elsewhere = {**good.fields, "room_id": "!nowhere:there.org"}
    answer = await peer.put_transaction(elsewhere, good)
    assert answer.json() == {"pdus": {good.event_id: {}}}
    query = "SELECT count(*) FROM rooms.inbox WHERE room_id = $1"
    assert await peer.deps.accounts.fetchval(query, RoomId("!nowhere:there.org")) == 0


async def test_nothing_is_taken_for_rooms_that_all_have_left(peer: PeerWorld, room: RemoteRoom) -> None:
    event = room.message("one")
    leave = NewEvent("m.room.member", ALICE, {"membership": "leave"})
    await peer.world.accepted(room.room_id, Append(leave))
    assert await peer.send(event) == {}
    assert await room.row(event) is None


@pytest.mark.parametrize(
    "body",
    [
        {"pdus": [{}] * 51},
        {"pdus": [], "edus": [{}] * 101},
        {"pdus": {}},
        {"pdus": [], "edus": "x"},
    ],
    ids=["pdus", "edus", "no array", "no list"],
)
async def test_transactions_have_bounds(peer: PeerWorld, body: dict[str, object]) -> None:
    answer = await peer.request("PUT", "send/t", body)
    assert (answer.status_code, answer.json()["errcode"]) == (400, "M_BAD_JSON")


async def test_odd_events_are_refused_or_passed_over(peer: PeerWorld, room: RemoteRoom) -> None:
    good = room.message("good")
    fields = dict(good.fields)
    odd: list[object] = [
        None, 7, [], {}, {"room_id": 3}, {"room_id": room.room_id},
        {**fields, "depth": 2**53}, {**fields, "depth": 1.5}, {**fields, "content": []},
        {**fields, "auth_events": ["$x"] * 11}, {**fields, "prev_events": []}, {**fields, "type": "a\0b"},
        {**fields, "sender": "nobody"}, {**fields, "content": {"body": "x" * 70_000}},
        {**fields, "content": {"body": "x"}, "room_id": "!other:there.org"},
    ]  # fmt: skip
    body = {"pdus": [*odd, fields], "edus": [None, 3, {}, {"edu_type": 4, "content": {}}]}
    answer = await peer.request("PUT", "send/odd", body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["pdus"]
    assert results.pop(good.event_id) == {}
    assert results
    assert all("error" in result for result in results.values())
    await peer.settled(room, good)


async def test_a_transaction_of_ten_megabytes_is_contained(peer: PeerWorld, room: RemoteRoom) -> None:
    huge = {**room.message("x").fields, "content": {"body": "x" * 10_000_000}}
    answer = await peer.put_transaction(huge)
    assert answer.status_code == 200
    assert all("exceeds" in result["error"] for result in answer.json()["pdus"].values())
    too_huge = {**huge, "content": {"body": "x" * 20_000_000}}
    assert (await peer.put_transaction(too_huge)).status_code == 413
    event = room.message("still alive")
    room.tip = event.event_id


async def test_edus_that_must_not_be_lost_lie_in_the_account_store(peer: PeerWorld, accounts: Database) -> None:
    edus = [
        {"edu_type": "m.direct_to_device", "content": {"message_id": "1"}},
        {"edu_type": "m.typing", "content": {"room_id": "!x", "user_id": "@a:there.org", "typing": True}},
        {"edu_type": "m.device_list_update", "content": {"user_id": "@a:there.org"}},
    ]
    await peer.send(edus=edus, txn="edus")
    await peer.send(edus=edus, txn="edus")
    async with accounts.transaction() as tx:
        taken = await received_transactions.list_edus(tx, 100)
        await received_transactions.delete_edus(tx, [one.edu_id for one in taken])
    assert [(one.origin, one.edu) for one in taken] == [(THERE, edus[0]), (THERE, edus[2])]


async def test_who_floods_a_room_waits(peer: PeerWorld, room: RemoteRoom) -> None:
    event = room.message("one")
    database = peer.world.shards.of_room(room.room_id)
    await database.execute(
        "INSERT INTO rooms.inbox (partition, room_id, origin, event_id, pdu, received_ms, state)"
        " SELECT $1, $2, $3, '$' || n, '', 0, 'parked' FROM generate_series(1, 2000) n",
        peer.world.shards.partition_of(room.room_id),
        room.room_id,
        THERE,
    )
    answer = await peer.put_transaction(event)
    assert (answer.status_code, answer.json()["retry_after_ms"]) == (503, 30_000)


async def test_what_lies_in_the_inbox_is_named_again(peer: PeerWorld, room: RemoteRoom) -> None:
    event = room.message("lost")
    await room.put(event)
    await peer.intake.naming.sweep_shard("main", 3600.0)
    assert await room.inbox_states() == ["new"]
    await peer.intake.naming.sweep_shard("main", -1.0)
    await peer.settled(room, event)


async def test_requests_must_be_signed_by_their_origin(peer: PeerWorld) -> None:
    other = ServerName("other.org")
    assert (await peer.put_transaction(origin=other)).status_code == 401
    wrong = SigningKey("1", b"\x09" * 32)
    assert (await peer.put_transaction(key=wrong)).status_code == 401
    answer = await peer.client.put("/_matrix/federation/v1/send/1", content=encode_canonical_json({"pdus": []}))
    assert answer.status_code == 401
    assert THERE_KEY.version == wrong.version


async def test_a_flood_of_device_messages_waits(
    peer: PeerWorld, accounts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "MAX_LYING_EDUS", 150)
    edus = [{"edu_type": "m.direct_to_device", "content": {"message_id": str(n)}} for n in range(100)]
    answers = [(await peer.put_transaction(edus=edus, txn=f"flood{number}")).status_code for number in range(4)]
    assert answers == [200, 200, 503, 503]
    assert await accounts.fetchval("SELECT count(*) FROM accounts.received_edus") == 200
