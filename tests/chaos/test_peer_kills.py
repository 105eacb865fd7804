"""A server that is killed while another one sends to it: what was acknowledged is in the rooms, once."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.small_peer import VERSION, SmallPeer, small_peer
from tests.fixtures.whole_server import Device

KILLS, ROOMS = 3, 4
BETWEEN_KILLS = 25  # transactions
RETRY_SECONDS = 0.1
TRIES = 600  # of one transaction, while the server comes back


class Sender:
    """Sends transaction after transaction, each until it is taken."""

    def __init__(self, peer: SmallPeer, rooms: list[RoomId]) -> None:
        self._peer = peer
        self._rooms = rooms
        self.acknowledged: list[Event] = []
        self.count = 0
        self.repeated = 0
        self.moved = asyncio.Event()

    async def run(self, transactions: int) -> None:
        """All of them, one in flight."""
        for number in range(transactions):
            events = [self._peer.message(room_id, number) for room_id in self._rooms]
            await self._send(f"t{number}", events)
            self.acknowledged += events
            self.count += 1
            self.moved.set()

    async def _send(self, txn_id: str, events: list[Event]) -> None:
        for _ in range(TRIES):
            try:
                return await self._peer.send(txn_id, events)
            except (aiohttp.ClientError, OSError, RuntimeError, TimeoutError):
                self.repeated += 1
                await asyncio.sleep(RETRY_SECONDS)
        raise AssertionError(f"{txn_id} was never taken")


async def read_back(device: Device, room_id: RoomId) -> list[EventId]:
    """All messages of a room, the newest first."""
    found: list[EventId] = []
    query: dict[str, str] = {"dir": "b", "limit": "100"}
    while True:
        answer = await device.get(f"/rooms/{quote(room_id)}/messages", **query)
        found += [EventId(one["event_id"]) for one in answer["chunk"] if one["type"] == "m.room.message"]
        if "end" not in answer:
            return found
        query["from"] = answer["end"]


@pytest.mark.timeout(280)
async def test_what_was_acknowledged_to_a_peer_survives_kills(peer_authority: PeerAuthority, tmp_path: Path) -> None:
    server = FederatedServer(tmp_path / "server", peer_authority)
    await server.start()
    try:
        async with server.connected() as api, small_peer(peer_authority, server.server_name) as peer:
            device = await api.register("reader")
            rooms = [RoomId(await device.make_room(preset="public_chat", room_version=VERSION)) for _ in range(ROOMS)]
            for room_id in rooms:
                await peer.join(room_id)
            sender = Sender(peer, rooms)
            sending = asyncio.create_task(sender.run(BETWEEN_KILLS * (KILLS + 1)))
            for kill in range(1, KILLS + 1):
                while sender.count < kill * BETWEEN_KILLS and not sending.done():
                    sender.moved.clear()
                    await asyncio.wait(
                        {sending, asyncio.create_task(sender.moved.wait())}, return_when="FIRST_COMPLETED"
                    )
                await server.kill()
                await server.start()
            await sending
            for room_id in rooms:
                sent = [event.event_id for event in sender.acknowledged if event.room_id == room_id]
                found: list[EventId] = []
                for _ in range(TRIES):
                    found = await read_back(device, room_id)
                    if len(found) >= len(sent):
                        break
                    await asyncio.sleep(RETRY_SECONDS)
                assert found == sent[::-1]
            assert sender.repeated > 0
    finally:
        await server.stop()
