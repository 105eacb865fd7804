"""This server as the policy server of rooms. Spec: S-S API §Policy Servers, POST /_matrix/policy/v1/sign."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from peer_world import PeerWorld, peer_world
from remote_room import DORA, RemoteRoom, remote_room
from writer_world import ALICE, SERVER, World

from matrixcore.event_signing import add_signature
from matrixcore.events import Event, load_event
from matrixcore.identifiers import ServerName
from matrixcore.policy_servers import POLICY_KEY_ID, PolicyServer, is_recommended
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey, encode_base64
from services.federation_in.member_events import changes_of
from tessera.commands import NewEvent
from tessera.config import Settings
from tessera.config.consistency import load_policy_key
from tessera.config.errors import ConfigError
from tessera.federation.policy_servers import SIGN_PATH
from tessera.http.errors import LimitExceeded, MatrixError
from tessera.room_changes import RoomChanges, Session
from tessera.storage.database import Database

KEY = SigningKey("policy_server", b"\x09" * 32)
VERSION = "11"
ME = Session(ALICE, "PHONE")
HERE = PolicyServer(ServerName(SERVER), KEY.public_key)
RULES = {"denied_users": ["@spam*:there.org"], "denied_words": ["Buy Now"]}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.key"
    path.write_text(f"ed25519 any {encode_base64(KEY.seed)}\n")
    return path


@pytest.fixture
async def peer(world: World, accounts: Database, key_file: Path) -> AsyncIterator[PeerWorld]:
    own = {"policy_server": {"signing_key_path": str(key_file), **RULES}}
    async with world.writer(), peer_world(world, accounts, tessera=own) as made:
        yield made


@pytest.fixture
def changes(peer: PeerWorld) -> RoomChanges:
    return changes_of(peer.deps)


@pytest.fixture
async def room(peer: PeerWorld, changes: RoomChanges) -> RemoteRoom:
    """A room of Alice's with Carla of another server, whose policy server is this one."""
    room = await remote_room(peer.world, VERSION)
    content = {"via": SERVER, "public_keys": {"ed25519": encode_base64(KEY.public_key)}}
    event_id = await changes.append(room.room_id, ME, NewEvent("m.room.policy", "", content))
    assert event_id is not None
    await room.take_in(event_id)
    return room


async def ask(peer: PeerWorld, event: Event | Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    body = dict(event.fields) if isinstance(event, Event) else event
    answer = await peer.request("POST", SIGN_PATH, body)
    return answer.status_code, answer.json()


async def test_what_is_recommended_is_signed(peer: PeerWorld, room: RemoteRoom) -> None:
    event = room.message("hello")
    status, answer = await ask(peer, event)
    assert status == 200
    assert list(answer) == [SERVER]
    assert list(answer[SERVER]) == [POLICY_KEY_ID]
    assert not is_recommended(event, HERE)
    signed = add_signature(event, ServerName(SERVER), POLICY_KEY_ID, answer[SERVER][POLICY_KEY_ID])
    assert is_recommended(signed, HERE)
    await peer.send(signed)
    await peer.settled(room, signed)
    assert (await room.row(signed))["soft_failed"] is None


async def test_what_comes_without_the_signature_is_judged_here(peer: PeerWorld, room: RemoteRoom) -> None:
    fine, spam = room.message("hello"), room.message("BUY NOW")
    await peer.send(fine, spam)
    await peer.settled(room, fine, spam)
    assert (await room.row(fine))["soft_failed"] is None
    assert (await room.row(spam))["soft_failed"] is not None


async def test_what_is_not_recommended(peer: PeerWorld, room: RemoteRoom) -> None:
    status, answer = await ask(peer, room.message("you must buy now"))
    assert (status, answer["errcode"]) == (400, "M_FORBIDDEN")
    spammer = room.make("m.room.message", {"body": "x"}, sender="@spam7:there.org")
    status, answer = await ask(peer, spammer)
    assert (status, answer["errcode"]) == (400, "M_FORBIDDEN")
    status, answer = await ask(peer, room.make("m.room.policy", {}, sender=DORA, state_key=""))
    assert (status, answer["errcode"]) == (400, "M_FORBIDDEN")
    status, answer = await ask(peer, {"room_id": room.room_id, "type": "m.room.message"})
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")
    status, answer = await ask(peer, {"type": "m.room.message"})
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")


async def test_only_what_its_hash_covers_is_signed(peer: PeerWorld, room: RemoteRoom) -> None:
    """The signature is on the hash: for harmless content somebody would else get it for whatever is hashed."""
    spam = room.message("buy now")
    status, answer = await ask(peer, {**spam.fields, "content": {"msgtype": "m.text", "body": "hello"}})
    assert (status, answer["errcode"]) == (400, "M_FORBIDDEN")


async def test_others_do_not_use_up_what_a_sender_may_send(peer: PeerWorld, room: RemoteRoom) -> None:
    event = room.message("hello")
    own = peer.deps.own_policy_server
    assert own is not None
    other = ServerName("other.org")
    for _ in range(3):
        own.answer(event, other)
    with pytest.raises(LimitExceeded):
        own.answer(event, other)
    assert (await ask(peer, event))[0] == 200


async def test_a_sender_of_too_much_has_to_wait(peer: PeerWorld, room: RemoteRoom) -> None:
    answers = [await ask(peer, room.message(str(number))) for number in range(4)]
    assert [status for status, _ in answers] == [200, 200, 200, 429]
    assert answers[-1][1]["errcode"] == "M_LIMIT_EXCEEDED"


async def test_rooms_of_others_are_not_known(peer: PeerWorld, room: RemoteRoom, changes: RoomChanges) -> None:
    elsewhere = await remote_room(peer.world, VERSION)
    status, answer = await ask(peer, elsewhere.message("hello"))
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")
    content = {"via": SERVER, "public_keys": {"ed25519": encode_base64(SigningKey("x", b"\x01" * 32).public_key)}}
    await changes.append(room.room_id, ME, NewEvent("m.room.policy", "", content))
    status, answer = await ask(peer, room.message("with another key"))
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")


async def test_own_users_ask_without_a_request(peer: PeerWorld, room: RemoteRoom, changes: RoomChanges) -> None:
    event_id = await changes.append(room.room_id, ME, NewEvent("m.room.message", None, {"body": "hello"}))
    assert event_id is not None
    query = "SELECT pdu FROM rooms.events WHERE event_id = $1"
    pdu = await peer.world.shards.of_room(room.room_id).fetchval(query, event_id)
    assert is_recommended(load_event(pdu, event_id, ROOM_VERSIONS[VERSION], room_id=room.room_id), HERE)
    with pytest.raises(MatrixError) as refused:
        await changes.append(room.room_id, ME, NewEvent("m.room.message", None, {"body": "buy now"}))
    assert (refused.value.status, refused.value.errcode) == (400, "M_FORBIDDEN")
    for number in range(2):
        await changes.append(room.room_id, ME, NewEvent("m.room.message", None, {"body": str(number)}))
    with pytest.raises(LimitExceeded):
        await changes.append(room.room_id, ME, NewEvent("m.room.message", None, {"body": "too much"}))
    assert peer.peers.asked == []


async def test_who_is_no_policy_server_says_so(world: World, accounts: Database) -> None:
    async with world.writer(), peer_world(world, accounts) as peer:
        status, answer = await ask(peer, {"room_id": "!x:there.org"})
    assert (status, answer["errcode"]) == (404, "M_UNRECOGNIZED")


def test_the_key_must_not_be_the_servers_own(key_file: Path) -> None:
    own = {"policy_server": {"signing_key_path": str(key_file)}}
    same = Settings.for_tests(server_name=SERVER, signing_key=key_file.read_text(), tessera=own)
    with pytest.raises(ConfigError, match="must not be the key"):
        load_policy_key(same)
    assert load_policy_key(Settings.for_tests(server_name=SERVER)) is None
