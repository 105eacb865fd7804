"""Memberships between Tessera and a real Synapse, both ways: joins, invites, knocks, leaves.

Each of the two servers is once the one that has the room and once the one whose user comes.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest

from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.synapse import SynapseServer
from tests.fixtures.whole_server import Device

VERSIONS = ["10", "11", "12"]
PATIENCE_SECONDS = 40


class Sides(NamedTuple):
    """Alice has the room, on one of the servers; Bob comes from the other one."""

    alice: Device
    bob: Device
    alices_server: str
    bobs_server: str
    tessera: FederatedServer


@pytest.fixture(params=["to synapse", "to tessera"])
async def sides(
    request: pytest.FixtureRequest, tessera_server: FederatedServer, synapse_server: SynapseServer
) -> AsyncIterator[Sides]:
    here, there = tessera_server, synapse_server
    async with here.connected() as ours, there.connected() as theirs:
        mine = await ours.register(f"u{secrets.token_hex(4)}")
        other = await theirs.register(f"u{secrets.token_hex(4)}")
        if request.param == "to synapse":
            yield Sides(other, mine, there.server_name, here.server_name, here)
        else:
            yield Sides(mine, other, here.server_name, there.server_name, here)


async def until(device: Device, found: Callable[[dict[str, Any]], Any]) -> Any:
    """What is found in one of the device's answers of /sync, from a full one on."""
    since: str | None = None
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = await device.sync(since, timeout=0 if since is None else 5_000)
            result = found(answer)
            if result:
                return result
            since = answer["next_batch"]


async def members(device: Device, room_id: str) -> dict[str, str]:
    """User -> membership, as the device's server has it."""
    state = await device.get(f"/rooms/{room_id}/members")
    return {event["state_key"]: event["content"]["membership"] for event in state["chunk"]}


async def until_member(device: Device, room_id: str, user_id: str, membership: str) -> None:
    """Wait until the device's server has a membership."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        since = None
        while (await members(device, room_id)).get(user_id, "leave") != membership:
            since = (await device.sync(since, timeout=1_000))["next_batch"]


def invited(room_id: str) -> Callable[[dict[str, Any]], Any]:
    return lambda answer: answer.get("rooms", {}).get("invite", {}).get(room_id)


async def until_left(device: Device, room_id: str, since: str) -> None:
    """Wait until the device hears that its user is out. Not from the beginning: Synapse keeps such answers a while."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = await device.sync(since, timeout=5_000)
            if room_id in answer.get("rooms", {}).get("leave", {}):
                return
            since = answer["next_batch"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_join_by_alias_and_leave(sides: Sides, version: str) -> None:
    alice, bob = sides.alice, sides.bob
    name = secrets.token_hex(4)
    room_id = await alice.make_room(preset="public_chat", room_version=version, room_alias_name=name, name="Room")
    joined = await bob.post(f"/join/%23{name}:{sides.alices_server}")
    assert joined["room_id"] == room_id
    await until_member(alice, room_id, bob.user_id, "join")
    assert await members(bob, room_id) == {alice.user_id: "join", bob.user_id: "join"}
    assert (await bob.get(f"/rooms/{room_id}/state/m.room.name"))["name"] == "Room"
    await bob.post(f"/rooms/{room_id}/leave")
    await until_member(alice, room_id, bob.user_id, "leave")
    # Nobody of Bob's server is in the room any more: it joins anew.
    await bob.post(f"/join/{room_id}?server_name={sides.alices_server}")
    await until_member(alice, room_id, bob.user_id, "join")
    assert (await members(bob, room_id))[bob.user_id] == "join"


@pytest.mark.parametrize("version", VERSIONS)
async def test_invite_reject_invite_accept(sides: Sides, version: str) -> None:
    alice, bob = sides.alice, sides.bob
    room_id = await alice.make_room(preset="private_chat", room_version=version, name="Private", invite=[bob.user_id])
    shown = await until(bob, invited(room_id))
    events = {event["type"]: event["content"] for event in shown["invite_state"]["events"]}
    assert events["m.room.name"] == {"name": "Private"}
    assert "m.room.create" in events
    await bob.post(f"/rooms/{room_id}/leave")
    await until_member(alice, room_id, bob.user_id, "leave")
    await alice.post(f"/rooms/{room_id}/invite", {"user_id": bob.user_id})
    await until(bob, invited(room_id))
    await bob.post(f"/rooms/{room_id}/join")  # whom to ask shows in the invite
    await until_member(alice, room_id, bob.user_id, "join")
    assert await members(bob, room_id) == {alice.user_id: "join", bob.user_id: "join"}


@pytest.mark.parametrize("version", VERSIONS)
async def test_knock_take_back_knock_let_in(sides: Sides, version: str) -> None:
    alice, bob = sides.alice, sides.bob
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = await alice.make_room(preset="private_chat", room_version=version, initial_state=[rules], name="Door")
    await bob.post(f"/knock/{room_id}?server_name={sides.alices_server}")
    shown = await until(bob, lambda answer: answer.get("rooms", {}).get("knock", {}).get(room_id))
    assert "m.room.join_rules" in {event["type"] for event in shown["knock_state"]["events"]}
    await until_member(alice, room_id, bob.user_id, "knock")
    if sides.bobs_server == sides.tessera.server_name:  # Synapse takes knocks back without a word to anybody
        await bob.post(f"/rooms/{room_id}/leave")
        await until_member(alice, room_id, bob.user_id, "leave")
        await bob.post(f"/knock/{room_id}?server_name={sides.alices_server}")
        await until_member(alice, room_id, bob.user_id, "knock")
    await alice.post(f"/rooms/{room_id}/invite", {"user_id": bob.user_id})
    await until(bob, invited(room_id))
    await bob.post(f"/join/{room_id}?server_name={sides.alices_server}")
    await until_member(alice, room_id, bob.user_id, "join")


@pytest.mark.parametrize("version", VERSIONS)
async def test_restricted_join(sides: Sides, version: str) -> None:
    alice, bob = sides.alice, sides.bob
    space = await alice.make_room(preset="public_chat", room_version=version)
    allow = [{"type": "m.room_membership", "room_id": space}]
    rules = {
        "type": "m.room.join_rules",
        "state_key": "",
        "content": {"join_rule": "restricted", "allow": allow},
    }
    room_id = await alice.make_room(preset="private_chat", room_version=version, initial_state=[rules])
    status, _ = await bob.refused("POST", f"/join/{room_id}?server_name={sides.alices_server}", {})
    assert status == 403
    await bob.post(f"/join/{space}?server_name={sides.alices_server}")
    await bob.post(f"/join/{room_id}?server_name={sides.alices_server}")
    await until_member(alice, room_id, bob.user_id, "join")
    event = await bob.get(f"/rooms/{room_id}/state/m.room.member/{bob.user_id}")
    assert event["join_authorised_via_users_server"] == alice.user_id


async def test_an_invite_is_taken_back(sides: Sides) -> None:
    alice, bob = sides.alice, sides.bob
    room_id = await alice.make_room(preset="private_chat", invite=[bob.user_id])
    await until(bob, invited(room_id))
    since = (await bob.sync())["next_batch"]
    await alice.post(f"/rooms/{room_id}/kick", {"user_id": bob.user_id})
    await until_left(bob, room_id, since)


async def test_the_last_member_of_a_server_is_banned(sides: Sides) -> None:
    alice, bob = sides.alice, sides.bob
    room_id = await alice.make_room(preset="public_chat")
    await bob.post(f"/join/{room_id}?server_name={sides.alices_server}")
    await until_member(alice, room_id, bob.user_id, "join")
    since = (await bob.sync())["next_batch"]
    await alice.post(f"/rooms/{room_id}/ban", {"user_id": bob.user_id})
    await until_left(bob, room_id, since)
    status, _ = await bob.refused("POST", f"/join/{room_id}?server_name={sides.alices_server}", {})
    assert status == 403
