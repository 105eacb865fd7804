"""matrix-bot-sdk's Appservice as a bridge: told of everything once, in order; asked for users, rooms, networks."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.fixtures.server_process import ServerProcess
from tests.interop.bot_sdk_bridge import JS, SERVER_NAME, SdkBridge
from tests.interop.bridged_person import BridgedPerson, bridged_person

pytestmark = pytest.mark.timeout(240)
MESSAGES = 30


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[SdkBridge]:
    assert (JS / "node_modules" / "matrix-bot-sdk").exists(), "`make test-interop` installs matrix-bot-sdk"
    made = SdkBridge()
    yield made
    await made.kill()


@pytest.fixture
async def bridged(bridge: SdkBridge, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """One process that knows the bridge."""
    registration = bridge.write_registration(tmp_path)
    server = ServerProcess(tmp_path / "server", app_service_config_files=[str(registration)])
    assert server.server_name == SERVER_NAME
    await server.start()
    yield server
    await server.stop()


async def test_a_bridge_is_told_asked_and_caught_up(bridge: SdkBridge, bridged: ServerProcess, unique: str) -> None:
    await bridge.start(bridged.base_url)
    async with bridged_person(bridged.base_url, f"alice{unique}") as alice:
        room = await _invite_a_ghost(bridge, alice)
        await _talk(bridge, alice, room)
        await _come_back(bridge, bridged, alice, room)
        channel = await _join_a_channel(bridge, alice)
        await _look_around(bridge, alice, channel)


async def _invite_a_ghost(bridge: SdkBridge, alice: BridgedPerson) -> str:
    """The ghost is unknown until it is invited."""
    ghost = f"@_irc_zoe:{SERVER_NAME}"
    room: str = (await alice.call("POST", "/createRoom", {"preset": "private_chat", "name": "Bridged"}))["room_id"]
    await alice.say(room, "before anybody is there")
    await alice.call("POST", f"/rooms/{quote(room)}/invite", {"user_id": ghost})
    assert bridge.of_kind("query.user") == [{"kind": "query.user", "userId": ghost}]
    await bridge.until(lambda: "here I am" in bridge.bodies(room))
    first, *_ = bridge.events(room)
    assert (first["type"], first["state_key"], first["content"]["membership"]) == ("m.room.member", ghost, "invite")
    assert first["content"]["displayname"] == "zoe (IRC)"
    assert {"m.room.name", "m.room.create"} <= {one["type"] for one in first["unsigned"]["invite_room_state"]}
    assert "before anybody is there" not in bridge.bodies(room)
    nobody = f"@_irc_nobody:{SERVER_NAME}"
    await alice.call("GET", f"/profile/{quote(nobody)}", status=404)
    return room


async def _talk(bridge: SdkBridge, alice: BridgedPerson, room: str) -> None:
    """Messages, state, a reaction, an edit and a redaction, and what the ghost says itself; typing and receipts."""
    sent = [await alice.say(room, f"message {number}") for number in range(MESSAGES)]
    await alice.call("PUT", f"/rooms/{quote(room)}/state/m.room.topic", {"topic": "irc"})
    relation = {"m.relates_to": {"rel_type": "m.annotation", "event_id": sent[0], "key": "+1"}}
    await alice.call("PUT", f"/rooms/{quote(room)}/send/m.reaction/r", relation)
    await alice.call("PUT", f"/rooms/{quote(room)}/redact/{quote(sent[1])}/x", {"reason": "oops"})
    await alice.call("PUT", f"/rooms/{quote(room)}/typing/{quote(alice.user_id)}", {"typing": True, "timeout": 20_000})
    await alice.call("POST", f"/rooms/{quote(room)}/receipt/m.read/{quote(sent[-1])}", {})
    await alice.say(room, "!echo the end")
    await bridge.until(lambda: "the end" in bridge.bodies(room))
    ids = [one["event_id"] for one in bridge.events(room)]
    assert len(ids) == len(set(ids)), "each once"
    assert [one for one in ids if one in set(sent)] == sent, "in order"
    types = [one["type"] for one in bridge.events(room)]
    assert types[types.index("m.room.topic") :][:3] == ["m.room.topic", "m.reaction", "m.room.redaction"]
    await bridge.until(
        lambda: {"m.typing", "m.receipt"} <= {one["event"]["type"] for one in bridge.of_kind("ephemeral")}
    )
    passing = {one["event"]["type"]: one["event"] for one in bridge.of_kind("ephemeral")}
    assert passing["m.receipt"]["room_id"] == room
    assert alice.user_id in passing["m.receipt"]["content"][sent[-1]]["m.read"]


async def _come_back(bridge: SdkBridge, server: ServerProcess, alice: BridgedPerson, room: str) -> None:
    """While the bridge is away, and the server is killed too, nothing is lost and the order is kept."""
    await bridge.kill()
    known = len(bridge.events(room))
    missed = [await alice.say(room, f"missed {number}") for number in range(MESSAGES)]
    await server.kill()
    await server.start()
    missed += [await alice.say(room, f"missed after {number}") for number in range(5)]
    await bridge.start(server.base_url)
    await bridge.until(lambda: missed[-1] in {one["event_id"] for one in bridge.events(room)})
    assert [one["event_id"] for one in bridge.events(room)[known:]] == missed


async def _join_a_channel(bridge: SdkBridge, alice: BridgedPerson) -> str:
    """The room is made when somebody asks for its alias."""
    alias = f"#_irc_tessera:{SERVER_NAME}"
    room: str = (await alice.call("POST", f"/join/{quote(alias)}", {}))["room_id"]
    assert [one["alias"] for one in bridge.of_kind("query.room")] == [alias]
    said = await alice.say(room, "hello, channel")
    await bridge.until(lambda: said in {one["event_id"] for one in bridge.events(room)})
    assert (await alice.call("GET", f"/directory/room/{quote(alias)}"))["room_id"] == room
    await alice.call("POST", f"/join/{quote(f'#_irc_closed:{SERVER_NAME}')}", {}, status=404)
    await alice.call("PUT", f"/directory/room/{quote(f'#_irc_mine:{SERVER_NAME}')}", {"room_id": room}, status=400)
    return room


async def _look_around(bridge: SdkBridge, alice: BridgedPerson, room: str) -> None:
    """The networks that the bridge serves, and the rooms that it publishes there."""
    protocols = await alice.call("GET", "/thirdparty/protocols")
    assert [one["instance_id"] for one in protocols["irc"]["instances"]] == ["irc|main"]
    assert (await alice.call("GET", "/thirdparty/user/irc?nickname=zoe"))[0]["userid"] == f"@_irc_zoe:{SERVER_NAME}"
    alias = f"#_irc_tessera:{SERVER_NAME}"
    found = await alice.call("GET", f"/thirdparty/location?alias={quote(alias)}")
    assert [one["fields"] for one in found] == [{"channel": "_tessera"}]
    await alice.call("POST", "/publicRooms", {"third_party_instance_id": "irc|main"})
    path = f"/directory/list/appservice/main/{quote(room)}"
    await alice.call("PUT", path, {"visibility": "public"}, status=403)
    token = {"Authorization": f"Bearer {bridge.registration['as_token']}"}
    await alice.call("PUT", path, {"visibility": "public"}, headers=token)
    listed = await alice.call("POST", "/publicRooms", {"third_party_instance_id": "irc|main"})
    assert [one["room_id"] for one in listed["chunk"]] == [room]
    everything = await alice.call("POST", "/publicRooms", {"include_all_networks": True})
    assert room in [one["room_id"] for one in everything["chunk"]]
    assert room not in [one["room_id"] for one in (await alice.call("POST", "/publicRooms", {}))["chunk"]]
    await alice.call("PUT", path, {"visibility": "private"}, headers=token)
    assert (await alice.call("POST", "/publicRooms", {"third_party_instance_id": "irc|main"}))["chunk"] == []
