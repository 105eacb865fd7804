"""What other servers look up here beside rooms' events: the directory, spaces, devices and keys, OpenID tokens.

Spec: S-S API §Published Room Directory, §Spaces, §Device Management, §End-to-End Encryption, §OpenID.
"""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from peer_world import PeerWorld, know_keys, path_of, peer_world, room_path
from remote_room import CARLA, THERE, remote_room
from writer_world import ALICE, BOB, World

from matrixcore.identifiers import RoomId, ServerName
from matrixcore.signing import SigningKey
from tessera.commands import Append, NewEvent
from tessera.room_summaries import refresh_summaries
from tessera.storage import cross_signing, device_keys, directory, one_time_keys, one_time_logins, users
from tessera.storage.cross_signing import CrossSigningKey
from tessera.storage.database import Database
from tessera.storage.one_time_keys import PublicKey

OTHER = ServerName("other.org")
OTHER_KEY = SigningKey("1", b"\x05" * 32)


@pytest.fixture
async def peer(world: World, accounts: Database) -> AsyncIterator[PeerWorld]:
    await know_keys(accounts, OTHER, OTHER_KEY)
    async with world.writer(), peer_world(world, accounts, allow_public_rooms_over_federation=True) as made:
        yield made


async def ok(peer: PeerWorld, method: str, path: str, body: dict[str, Any] | None = None, **more: Any) -> Any:
    answer = await peer.request(method, path, body, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(peer: PeerWorld, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    answer = await peer.request(method, path, body)
    return answer.status_code, answer.json()["errcode"]


async def set_state(world: World, room_id: RoomId, event_type: str, content: dict[str, Any], key: str = "") -> None:
    await world.accepted(room_id, Append(NewEvent(event_type, key, content)))


async def publish(peer: PeerWorld, name: str) -> RoomId:
    """A room in the directory."""
    room_id = await peer.world.new_room("11")
    await set_state(peer.world, room_id, "m.room.name", {"name": name})
    async with peer.deps.accounts.transaction() as tx:
        await directory.set_published(tx, room_id, True)
    await refresh_summaries(peer.deps.accounts, peer.world.shards, [room_id])
    return room_id


async def test_the_directory_page_by_page_and_searched(peer: PeerWorld) -> None:
    rooms = {await publish(peer, name): name for name in ("Tea", "Cake", "Coffee")}
    await peer.world.new_room("11")
    found: dict[str, str] = {}
    path = "publicRooms?limit=2"
    pages = []
    while path:
        page = await ok(peer, "GET", path)
        pages.append(len(page["chunk"]))
        found |= {room["room_id"]: room["name"] for room in page["chunk"]}
        assert page["total_room_count_estimate"] == 3
        path = path_of("publicRooms?limit=2&since={}", page["next_batch"]) if "next_batch" in page else ""
    assert (found, pages) == (rooms, [2, 1])
    line = (await ok(peer, "GET", "publicRooms"))["chunk"][0]
    assert (line["join_rule"], line["num_joined_members"], line["world_readable"]) == ("public", 1, False)
    searched = await ok(peer, "POST", "publicRooms", {"filter": {"generic_search_term": "TEA"}})
    assert [room["name"] for room in searched["chunk"]] == ["Tea"]
    spaces = await ok(peer, "POST", "publicRooms", {"filter": {"room_types": ["m.space"]}})
    assert spaces["chunk"] == []
    assert await refused(peer, "GET", "publicRooms?since=nonsense") == (400, "M_INVALID_PARAM")
    assert (await refused(peer, "POST", "publicRooms", {"limit": "many"}))[0] == 400


async def test_a_directory_that_is_for_users_of_this_server_only(world: World, accounts: Database) -> None:
    async with world.writer(), peer_world(world, accounts) as peer:
        assert await refused(peer, "GET", "publicRooms") == (403, "M_FORBIDDEN")
        assert await refused(peer, "POST", "publicRooms", {}) == (403, "M_FORBIDDEN")


async def test_a_space_as_another_server_may_see_it(peer: PeerWorld) -> None:
    world = peer.world
    shared = await remote_room(world)  # Carla of the other server is in it
    space, public, closed, restricted, unseen = [await world.new_room("11") for _ in range(5)]
    for room_id in (closed, unseen):
        await set_state(world, room_id, "m.room.join_rules", {"join_rule": "invite"})
    for room_id, allowed in ((restricted, shared.room_id), (unseen, closed)):
        allow = [{"type": "m.room_membership", "room_id": allowed}]
        await set_state(world, room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
    children = {public: "a", closed: "b", restricted: "c", unseen: "d", RoomId("!far:other.org"): "e"}
    for room_id, order in children.items():
        content: dict[str, Any] = {"via": ["here.org"], "order": order}
        await set_state(world, space, "m.space.child", content | ({"suggested": True} if order == "a" else {}), room_id)
    await set_state(world, public, "m.room.name", {"name": "open"})
    answer = await ok(peer, "GET", room_path("hierarchy", space))
    assert answer["room"]["room_id"] == space
    assert [child["state_key"] for child in answer["room"]["children_state"]] == list(children)
    assert [room["room_id"] for room in answer["children"]] == [public, restricted]
    assert (answer["children"][0]["name"], answer["children"][0]["join_rule"]) == ("open", "public")
    assert answer["children"][1]["allowed_room_ids"] == [shared.room_id]
    assert sorted(answer["inaccessible_children"]) == sorted([closed, unseen]), "what is not known here is not named"
    suggested = await ok(peer, "GET", room_path("hierarchy", space) + "?suggested_only=true")
    assert [room["room_id"] for room in suggested["children"]] == [public]
    assert suggested["inaccessible_children"] == []
    # To a server that has nobody in the room of the rule the restricted one is closed.
    stranger = await ok(peer, "GET", room_path("hierarchy", space), origin=OTHER, key=OTHER_KEY)
    assert sorted(stranger["inaccessible_children"]) == sorted([closed, restricted, unseen])
    assert await refused(peer, "GET", room_path("hierarchy", closed)) == (404, "M_NOT_FOUND")
    assert await refused(peer, "GET", "hierarchy/!none:here.org") == (404, "M_NOT_FOUND")
    await set_state(world, space, "m.room.server_acl", {"allow": ["*"], "deny": [THERE]})
    assert await refused(peer, "GET", room_path("hierarchy", space)) == (404, "M_NOT_FOUND")


def device(device_id: str) -> bytes:
    keys = {f"ed25519:{device_id}": "k"}
    return orjson.dumps({"user_id": ALICE, "device_id": device_id, "algorithms": [], "keys": keys, "signatures": {}})


@pytest.fixture
async def owner(peer: PeerWorld) -> PeerWorld:
    """Alice has two devices with keys, one of them with a one-time key and a fallback key, and signs across them."""
    async with peer.deps.accounts.transaction() as tx:
        for user_id in (ALICE, BOB):
            await users.add_user(tx, user_id, password_hash=None, displayname=None, now_ms=1)
        for name in ("PHONE", "LAPTOP"):
            await tx.execute(
                "INSERT INTO accounts.devices (user_id, device_id, display_name, created_ts)"
                " VALUES ($1, $2, 'Mine', 1)",
                ALICE,
                name,
            )
            await device_keys.set_keys(tx, ALICE, name, device(name), None)
        await one_time_keys.add_keys(tx, ALICE, "PHONE", [PublicKey("signed_curve25519", "AAA", b'{"key":"one"}')])
        await one_time_keys.set_fallback_keys(
            tx, ALICE, "PHONE", [PublicKey("signed_curve25519", "FFF", b'{"fallback":true,"key":"last"}')]
        )
        signing = [
            CrossSigningKey(
                usage, usage, orjson.dumps({"user_id": ALICE, "usage": [usage], "keys": {"ed25519:x": "x"}})
            )
            for usage in ("master", "self_signing", "user_signing")
        ]
        await cross_signing.set_keys(tx, ALICE, signing)
    return peer


async def test_the_devices_of_a_user(owner: PeerWorld) -> None:
    answer = await ok(owner, "GET", path_of("user/devices/{}", ALICE))
    assert (answer["user_id"], type(answer["stream_id"])) == (ALICE, int)
    assert {one["device_id"]: one["keys"] for one in answer["devices"]} == {
        name: orjson.loads(device(name)) for name in ("PHONE", "LAPTOP")
    }
    assert "Mine" not in str(answer), "names of devices are nobody else's business"
    assert answer["master_key"]["usage"] == ["master"]
    assert answer["self_signing_key"]["usage"] == ["self_signing"]
    assert "user_signing_key" not in answer
    assert (await ok(owner, "GET", path_of("user/devices/{}", BOB)))["devices"] == []
    assert await refused(owner, "GET", path_of("user/devices/{}", "@nobody:here.org")) == (404, "M_NOT_FOUND")
    assert await refused(owner, "GET", path_of("user/devices/{}", CARLA)) == (400, "M_INVALID_PARAM")
    assert await refused(owner, "GET", path_of("user/devices/{}", "alice")) == (400, "M_INVALID_PARAM")


async def test_keys_of_several_users(owner: PeerWorld) -> None:
    body = {"device_keys": {ALICE: ["PHONE", "GONE"], BOB: [], CARLA: [], "@nobody:here.org": [], "nonsense": []}}
    answer = await ok(owner, "POST", "user/keys/query", body)
    assert {user: list(found) for user, found in answer["device_keys"].items()} == {ALICE: ["PHONE"], BOB: []}
    assert list(answer["master_keys"]) == list(answer["self_signing_keys"]) == [ALICE]
    assert "user_signing_keys" not in answer
    every = await ok(owner, "POST", "user/keys/query", {"device_keys": {ALICE: []}})
    assert sorted(every["device_keys"][ALICE]) == ["LAPTOP", "PHONE"]
    for wrong in ({}, {"device_keys": []}, {"device_keys": {ALICE: {}}}):
        assert (await refused(owner, "POST", "user/keys/query", wrong)) == (400, "M_BAD_JSON")


async def test_a_one_time_key_is_given_once_and_then_the_fallback_key(owner: PeerWorld) -> None:
    body = {
        "one_time_keys": {
            ALICE: {"PHONE": "signed_curve25519", "LAPTOP": "signed_curve25519"},
            CARLA: {"X": "signed_curve25519"},
        }
    }
    given = [await ok(owner, "POST", "user/keys/claim", body) for _ in range(3)]
    assert [one["one_time_keys"] for one in given] == [
        {ALICE: {"PHONE": {"signed_curve25519:AAA": {"key": "one"}}}},
        {ALICE: {"PHONE": {"signed_curve25519:FFF": {"fallback": True, "key": "last"}}}},
        {ALICE: {"PHONE": {"signed_curve25519:FFF": {"fallback": True, "key": "last"}}}},
    ]
    # The device hears that its keys run out.
    async with owner.deps.accounts.reading() as tx:
        assert await one_time_keys.count_keys(tx, ALICE, "PHONE") == {}
        assert await one_time_keys.list_unused_fallback_types(tx, ALICE, "PHONE") == []
    assert (await refused(owner, "POST", "user/keys/claim", {"one_time_keys": {ALICE: []}})) == (400, "M_BAD_JSON")


async def test_whose_an_openid_token_is(owner: PeerWorld) -> None:
    now_ms = owner.deps.clock.now_ms()
    async with owner.deps.accounts.transaction() as tx:
        await one_time_logins.add_openid_token(tx, ALICE, "good", expires_ts=now_ms + 60_000, now_ms=now_ms)
        await one_time_logins.add_openid_token(tx, BOB, "old", expires_ts=now_ms - 1, now_ms=now_ms - 2)
    ask = "/_matrix/federation/v1/openid/userinfo"
    # Whoever has a token may ask: an integration manager is no server and signs nothing.
    answer = await owner.client.get(ask, params={"access_token": "good"})
    assert (answer.status_code, answer.json()) == (200, {"sub": ALICE})
    for token in ("old", "made up", "x" * 400):
        answer = await owner.client.get(ask, params={"access_token": token})
        assert (answer.status_code, answer.json()["errcode"]) == (401, "M_UNKNOWN_TOKEN")
    for params in ({}, {"access_token": "x" * 501}):
        assert (await owner.client.get(ask, params=params)).status_code == 400
    await owner.deps.accounts.execute("UPDATE accounts.users SET deactivated = true WHERE user_id = $1", ALICE)
    assert (await owner.client.get(ask, params={"access_token": "good"})).status_code == 401
