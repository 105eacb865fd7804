"""Tessera and a real Synapse, of which one is stopped for a while, and what it missed."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.meeting import AnyServer, Meeting, Watch, until_member
from tests.fixtures.synapse import SynapseServer
from tests.fixtures.whole_server import Device

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]
MISSED = 30


@asynccontextmanager
async def stopped(server: AnyServer) -> AsyncIterator[None]:
    """A server that does not run inside the block."""
    if isinstance(server, SynapseServer):
        server.stop()
    else:
        await server.stop()
    try:
        yield
    finally:
        if isinstance(server, SynapseServer):
            server.start()
        else:
            await server.start()


@asynccontextmanager
async def again(server: AnyServer, device: Device) -> AsyncIterator[Device]:
    """The same device on new connections."""
    login = {"user_id": device.user_id, "device_id": device.device_id, "access_token": device.token}
    async with server.connected() as api:
        yield Device(api.http, login)


@pytest.mark.parametrize("who", ["the guest's server", "the host's server"])
async def test_a_server_that_was_away_is_caught_up(meeting: Meeting, who: str) -> None:
    room_id = await meeting.share_room()
    here, gone, server = (
        (meeting.alice, meeting.bob, meeting.bobs)
        if who == "the guest's server"
        else (meeting.bob, meeting.alice, meeting.alices)
    )
    watch = await Watch.begin(gone)
    async with stopped(server):
        sent = [await here.send(room_id, f"while away {number}") for number in range(MISSED)]
        await here.put(f"/profile/{here.user_id}/displayname", {"displayname": "Changed"})
        messages = {gone.user_id: {gone.device_id: {"n": 1}}}
        await here.put(f"/sendToDevice/m.secret/{secrets.token_hex(8)}", {"messages": messages})
        # Not before the new name: Synapse takes it for a join, soon after the real one, and begins the timeline anew,
        # in the order of the room's graph and without what comes late from below.
        heard_here = await Watch.begin(here)
    async with again(server, gone) as back:
        watch = Watch(back, watch.since)
        # Whoever comes back shows life, and is sent to at once.
        own = await back.send(room_id, "back")
        await watch.until_event(room_id, sent[-1])
        await watch.until(lambda: [one["content"] for one in watch.to_device] == [{"n": 1}], "the message")
        await heard_here.until_event(room_id, own)
        page = await back.get(f"/rooms/{room_id}/messages", dir="b", limit=MISSED + 10)
        seen = [event["event_id"] for event in page["chunk"]][::-1]
        assert [event_id for event_id in seen if event_id in sent] == sent
        name = await back.get(f"/rooms/{room_id}/state/m.room.member/{here.user_id}")
        assert name["displayname"] == "Changed"
        # And from now on everything goes as before.
        for sender, heard in ((here, back), (back, here)):
            ear = await Watch.begin(heard)
            await ear.until_event(room_id, await sender.send(room_id, "as before"))


@pytest.mark.parametrize("version", ["12"], indirect=True)
async def test_an_invite_of_a_dead_server_is_rejected(meeting: Meeting) -> None:
    """Bob is rid of the invite at once, whether or not anybody can be told."""
    watch = await Watch.begin(meeting.bob)
    room_id = await meeting.make_room(preset="private_chat", invite=[meeting.bob.user_id])
    await watch.until_section(room_id, "invite")
    async with stopped(meeting.alices):
        await meeting.bob.post(f"/rooms/{room_id}/leave")
        await watch.until_section(room_id, "leave")


async def until_alive(tessera: FederatedServer, synapse: SynapseServer) -> None:
    """Both servers answer."""
    for server in (tessera, synapse):
        async with server.connected() as api:
            assert (await api.http.get("/_matrix/client/versions")).status_code == 200


@pytest.mark.parametrize("version", ["12"], indirect=True)
async def test_a_frozen_synapse_is_caught_up(
    meeting: Meeting, tessera: FederatedServer, synapse_server: SynapseServer
) -> None:
    """Its port is open, but nothing answers."""
    room_id = await meeting.share_room()
    here, gone = (meeting.alice, meeting.bob) if meeting.bobs is synapse_server else (meeting.bob, meeting.alice)
    watch = await Watch.begin(gone)
    synapse_server.pause()
    try:
        sent = [await here.send(room_id, f"while frozen {number}") for number in range(MISSED)]
    finally:
        synapse_server.resume()
    await until_alive(tessera, synapse_server)
    await gone.send(room_id, "back")
    await watch.until_event(room_id, sent[-1])
    await until_member(here, room_id, gone.user_id, "join")
