"""Two Tesseras and a Synapse in one room, whose people all change the same things at the same time."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.meeting import Meeting, eventually, members
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.whole_server import Device, ServerApi

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]
ROUNDS = 5
StateIds = dict[tuple[str, str], str]


class Third(NamedTuple):
    """Another Tessera."""

    server: FederatedServer
    api: ServerApi


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def third(peer_authority: PeerAuthority, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Third]:
    """A Tessera in one process, whatever the other one is."""
    server = FederatedServer(tmp_path_factory.mktemp("third"), peer_authority)
    try:
        await server.start()
        async with server.connected() as api:
            yield Third(server, api)
    finally:
        await server.stop()


async def state_ids(device: Device, room_id: str) -> StateIds:
    """(type, state key) -> event ID of current state, as the device's server has it."""
    state = await device.get(f"/rooms/{room_id}/state")
    return {(event["type"], event["state_key"]): event["event_id"] for event in state}


async def set_state(device: Device, room_id: str, event_type: str, content: dict[str, Any], key: str = "") -> int:
    """The status; who was just banned is refused."""
    status, _ = await device.call("PUT", f"/rooms/{room_id}/state/{event_type}/{key}", content)
    return int(status)


async def test_conflicting_changes_end_in_one_state(meeting: Meeting, third: Third) -> None:
    carol = await third.api.register(f"carol{secrets.token_hex(4)}")
    dave = await meeting.alices_api.register(f"dave{secrets.token_hex(4)}")
    room_id = await meeting.share_room()
    people = [meeting.alice, meeting.bob, carol]
    await carol.post(f"/join/{room_id}?{meeting.by_alices}")
    await dave.post(f"/join/{room_id}")
    levels = await meeting.alice.get(f"/rooms/{room_id}/state/m.room.power_levels")
    levels.setdefault("users", {}).update({meeting.bob.user_id: 100, carol.user_id: 100})
    await meeting.alice.put(f"/rooms/{room_id}/state/m.room.power_levels", levels)
    wanted = dict.fromkeys((one.user_id for one in (*people, dave)), "join")

    async def settled(device: Device) -> bool:
        known: dict[str, Any] = await device.get(f"/rooms/{room_id}/state/m.room.power_levels")
        return known.get("users") == levels["users"] and await members(device, room_id) == wanted

    for device in people:
        await eventually(partial(settled, device), f"{device.user_id} in a room of four")

    for number in range(ROUNDS):
        await asyncio.gather(*(change(device, room_id, number, dave, levels) for device in people))

    last: list[StateIds] = []

    async def agree() -> bool:
        # A message of each joins the ends of the room, wherever they are known.
        last[:] = await asyncio.gather(*(state_ids(device, room_id) for device in people))
        return last[0] == last[1] == last[2]

    def differences() -> str:
        keys = {key for state in last for key in state if len({one.get(key) for one in last}) > 1}
        return str({key: [one.get(key) for one in last] for key in keys})

    for device in people:
        await device.send(room_id, "done")
    await eventually(agree, lambda: f"one state; they differ in {differences()}")
    topics = [(await device.get(f"/rooms/{room_id}/state/m.room.topic"))["topic"] for device in people]
    assert len(set(topics)) == 1
    assert (await members(people[0], room_id))[dave.user_id] in ("ban", "leave", "join")


async def change(device: Device, room_id: str, number: int, victim: Device, levels: dict[str, Any]) -> None:
    """What contradicts what the others do in this round."""
    text = f"{number} of {device.user_id}"
    await set_state(device, room_id, "m.room.topic", {"topic": text})
    await set_state(device, room_id, "m.room.name", {"name": text})
    if number % 2 == 0:
        await device.call("POST", f"/rooms/{room_id}/ban", {"user_id": victim.user_id, "reason": text})
    else:
        await device.call("POST", f"/rooms/{room_id}/unban", {"user_id": victim.user_id})
    changed = {**levels, "events": {**levels.get("events", {}), "m.room.name": 50 + number, f"org.example.{text}": 1}}
    await set_state(device, room_id, "m.room.power_levels", changed)
    await set_state(device, room_id, "org.example.thing", {"by": text}, f"{number}")
    await device.send(room_id, text)
