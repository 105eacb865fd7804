"""Keys of other servers' users, and messages to their devices."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from matrixcore.identifiers import RoomId, ServerName, UserId
from services.gateway.keys import list_keys, take_keys
from services.gateway.remote_keys import CLAIM_PATH, PARALLEL_SERVERS, QUERY_PATH, RemoteKeys
from services.gateway.send_to_device import MAX_EDU_BYTES, OtherServers, ToDeviceRequest, deliver
from tessera.fanout import LocalFanout
from tessera.federation.errors import PeerUnreachable
from tessera.federation.policy import FederationPolicy
from tessera.ids import IdSource
from tessera.storage import federation_queue, remote_devices
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

OWN, THERE, DEAD = ServerName("own.example"), ServerName("there.example"), ServerName("dead.example")
ALICE, BOB, CAROL = UserId(f"@alice:{OWN}"), UserId(f"@bob:{THERE}"), UserId(f"@carol:{DEAD}")
ROOM = RoomId("!room:x")
BUCKETS = 64


def _device(user_id: str, device_id: str) -> dict[str, Any]:
    return {"user_id": user_id, "device_id": device_id, "algorithms": [], "keys": {"ed25519:X": "k"}}


@dataclass
class Client:
    """Answers for one server; the other is dead, and `silent` ones never answer."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)

    async def post(
        self, server: str, path: str, body: Mapping[str, Any], *, timeout_s: float = 0, max_bytes: int = 0
    ) -> dict[str, Any]:
        """The answer to a path."""
        self.asked.append((server, path, body))
        if server in self.silent:
            await asyncio.Event().wait()
        if server == DEAD:
            raise PeerUnreachable("no route")
        return self.answers[path]


@pytest.fixture
async def remote(accounts: Database, shards: RoomShards) -> RemoteKeys:
    """Bob and Carol share a room with somebody here."""
    await shards.of_room(ROOM).execute("INSERT INTO rooms.room_servers VALUES ($1, $2, 1)", ROOM, OWN)
    for user_id in (BOB, CAROL):
        await shards.of_room(ROOM).execute(
            "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, membership)"
            " VALUES ($1, 'm.room.member', $2, '$m', 1, 'join')",
            ROOM,
            user_id,
        )
    master = {"user_id": BOB, "usage": ["master"], "keys": {"ed25519:a": "a"}}
    client = Client(
        {
            QUERY_PATH: {
                "device_keys": {
                    BOB: {"ONE": _device(BOB, "ONE"), "LIE": _device(ALICE, "LIE")},
                    ALICE: {"EVIL": _device(ALICE, "EVIL")},
                },
                "master_keys": {BOB: master, ALICE: {**master, "user_id": ALICE}},
            },
            CLAIM_PATH: {
                "one_time_keys": {BOB: {"ONE": {"curve25519:A": "no", "signed_curve25519:B": {"key": "yes"}}}},
            },
        }
    )
    return RemoteKeys(accounts, shards, client, OWN)


async def _query(remote: RemoteKeys, *users: UserId) -> dict[str, Any]:
    reply = await list_keys(remote.accounts, OWN, ALICE, {user_id: [] for user_id in users}, remote)
    answer: dict[str, Any] = orjson.loads(orjson.dumps(reply))
    return answer


async def test_a_server_speaks_for_its_own_users_alone(remote: RemoteKeys) -> None:
    reply = await _query(remote, ALICE, BOB, CAROL)
    assert {user: list(devices) for user, devices in reply["device_keys"].items()} == {BOB: ["ONE"]}
    assert list(reply["master_keys"]) == [BOB]
    assert list(reply["failures"]) == [DEAD]


async def test_lists_that_are_kept_are_served_without_asking(remote: RemoteKeys) -> None:
    await _query(remote, BOB, CAROL)
    async with remote.accounts.transaction() as tx:
        stale = {one.user_id: one.changed for one in await remote_devices.take_stale(tx, 10)}
        assert set(stale) == {BOB, CAROL}
        for user_id in (BOB, CAROL):
            kept = {"KEPT": orjson.dumps(_device(user_id, "KEPT"))}
            assert await remote_devices.replace_list(tx, user_id, stale[user_id], 3, kept, (None, None))
    assert isinstance(remote.client, Client)
    remote.client.asked.clear()
    reply = await _query(remote, BOB, CAROL)
    assert (remote.client.asked, reply["failures"]) == ([], {})
    assert list(reply["device_keys"][BOB]) == ["KEPT"]
    await remote.accounts.execute("UPDATE accounts.remote_device_lists SET stale = true")
    reply = await _query(remote, BOB, CAROL)
    assert list(reply["device_keys"][BOB]) == ["ONE"]
    assert list(reply["device_keys"][CAROL]) == ["KEPT"], "old, and better than nothing"
    assert list(reply["failures"]) == [DEAD]


async def test_many_silent_servers_cost_no_more_than_one(remote: RemoteKeys) -> None:
    silent = [UserId(f"@someone:silent{number}.example") for number in range(2 * PARALLEL_SERVERS)]
    assert isinstance(remote.client, Client)
    remote.client.silent = {user_id.partition(":")[2] for user_id in silent}
    asked: dict[UserId, list[str]] = {BOB: [], **{user_id: [] for user_id in silent}}
    async with asyncio.timeout(5):
        answer = await remote.query(asked, 0.2)
    assert list(answer.devices) == [BOB]
    assert sorted(answer.failures) == sorted(remote.client.silent)


async def test_claimed_keys_are_of_the_algorithm_that_was_asked_for(remote: RemoteKeys) -> None:
    asked = {BOB: {"ONE": "signed_curve25519", "TWO": "signed_curve25519"}, CAROL: {"X": "signed_curve25519"}}
    reply = orjson.loads(orjson.dumps(await take_keys(remote.accounts, LocalFanout(), OWN, asked, remote)))
    assert reply["one_time_keys"] == {BOB: {"ONE": {"signed_curve25519:B": {"key": "yes"}}}}
    assert list(reply["failures"]) == [DEAD]


async def test_messages_to_other_servers_are_queued_once_in_parts_that_they_take(accounts: Database) -> None:
    others = OtherServers(FederationPolicy(OWN, denied=[DEAD]), IdSource(), BUCKETS)
    messages = {BOB: {f"D{number}": {"body": "x" * 20_000} for number in range(5)}, CAROL: {"*": {}}}
    request = ToDeviceRequest(ALICE, "PHONE", "m.secret", "txn", messages)
    for _ in range(2):
        await deliver(accounts, LocalFanout(), OWN, request, 1, others)
    async with accounts.reading() as tx:
        queued = await federation_queue.list_edus(tx, [THERE, DEAD])
    assert list(queued) == [THERE]
    edus = [orjson.loads(one.edu) for one in queued[THERE]]
    assert all(len(one.edu) < MAX_EDU_BYTES + 25_000 for one in queued[THERE])
    assert len({edu["content"]["message_id"] for edu in edus}) == len(edus) == 3
    devices = [device for edu in edus for device in edu["content"]["messages"][BOB]]
    assert devices == [f"D{number}" for number in range(5)]
    assert edus[0]["content"]["sender"] == ALICE
