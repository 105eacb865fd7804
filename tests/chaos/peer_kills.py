"""Whatever takes in a peer's transactions is killed while the peer sends: what was acknowledged is there, once.

    .venv/bin/python -m tests.chaos.peer_kills --kills 30 --cluster

A peer sends twenty events a second, in transactions over four rooms with one to-device message each, one transaction
in flight, each sent again under its ID until it is acknowledged. Meanwhile the server gets SIGKILL and is started
again; of a cluster (on a real Kafka and Valkey) one of three federation_in processes does, at a random moment while
another one is there. In the end each acknowledged event is in /messages once, in the order in which it was sent, and
each message reached its device once.
"""

import argparse
import asyncio
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx

from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId
from tests.fixtures.federated_server import FederatedServer, peer_settings
from tests.fixtures.kafka_broker import new_broker
from tests.fixtures.kafka_topics import topic_prefix
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.server_process import ServerProcess, free_port
from tests.fixtures.service_process import ClusterProcess
from tests.fixtures.small_peer import VERSION, SmallPeer, small_peer
from tests.fixtures.valkey import ValkeyProcess
from tests.fixtures.whole_server import Device, ServerApi

ROOMS = 4
PDUS_A_SECOND = 20.0
PAUSE_SECONDS = (0.5, 4.0)  # between two kills
RETRY_SECONDS = 0.1
TRANSACTION_SECONDS = 60.0  # of one transaction, while the server comes back
SETTLE_SECONDS = 60.0
READY_SECONDS = 60.0  # for a killed process to be back
COUNTS = {"gateways": 1, "writers": 2, "syncs": 1, "media": 0, "projectors": 1, "federation-ins": 3, "pushes": 0}
Harm = Callable[[random.Random], Awaitable[None]]


@dataclass
class Report:
    """What happened."""

    kills: int = 0
    acknowledged: int = 0
    repeated: int = 0
    sending_seconds: float = 0.0
    pauses: list[float] = field(default_factory=list)  # seconds from a transaction's first try to its acknowledgement

    def lines(self) -> list[str]:
        """For people."""
        waits = sorted(self.pauses)
        return [
            f"{self.kills} kills, {self.acknowledged} events acknowledged in {self.sending_seconds:.0f} s: all in their"
            f" rooms once and in order, all messages at their device once",
            f"  {self.repeated} transactions sent again; until acknowledged: p50 {waits[len(waits) // 2] * 1e3:.0f} ms,"
            f" p99 {waits[int(len(waits) * 0.99)]:.1f} s, longest {waits[-1]:.1f} s",
        ]


class Sender:
    """Sends transaction after transaction, each until it is taken."""

    def __init__(self, peer: SmallPeer, rooms: list[RoomId], device: Device, report: Report) -> None:
        self._peer = peer
        self._rooms = rooms
        self._device = device
        self._report = report
        self.acknowledged: list[Event] = []
        self.count = 0
        self.is_stopping = False

    async def run(self, pdus_a_second: float) -> None:
        """Until it is told to stop, one transaction in flight."""
        began = time.monotonic()
        while not self.is_stopping:
            events = [self._peer.message(room_id, self.count) for room_id in self._rooms]
            await self._send(f"t{self.count}", events)
            self.acknowledged += events
            self.count += 1
            due = began + self.count * len(self._rooms) / pdus_a_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        self._report.acknowledged = len(self.acknowledged)
        self._report.sending_seconds = time.monotonic() - began

    async def _send(self, txn_id: str, events: list[Event]) -> None:
        began = time.monotonic()
        while time.monotonic() < began + TRANSACTION_SECONDS:
            try:
                await self._peer.send(txn_id, events, [self._message(txn_id)])
            except (aiohttp.ClientError, OSError, RuntimeError, TimeoutError):
                self._report.repeated += 1
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._report.pauses.append(time.monotonic() - began)
                return
        raise AssertionError(f"{txn_id} was never taken")

    def _message(self, txn_id: str) -> Mapping[str, Any]:
        content = {
            "sender": f"@sender:{self._peer.name}",
            "type": "org.example.number",
            "message_id": f"m{txn_id}",
            "messages": {self._device.user_id: {self._device.device_id: {"txn": txn_id}}},
        }
        return {"edu_type": "m.direct_to_device", "content": content}


async def run(
    api: ServerApi, peer: SmallPeer, harm: Harm, *, kills: int, seed: int, pdus_a_second: float = PDUS_A_SECOND
) -> Report:
    """Kill so many times; raises AssertionError at whatever is lost, doubled or out of order."""
    chance, report = random.Random(seed), Report()
    device = await api.register("reader")
    since = (await device.sync())["next_batch"]
    rooms = [RoomId(await device.make_room(preset="public_chat", room_version=VERSION)) for _ in range(ROOMS)]
    for room_id in rooms:
        await peer.join(room_id)
    sender = Sender(peer, rooms, device, report)
    sending = asyncio.create_task(sender.run(pdus_a_second))
    try:
        for _ in range(kills):
            await asyncio.wait({sending}, timeout=chance.uniform(*PAUSE_SECONDS))
            if sending.done():
                break
            await harm(chance)
            report.kills += 1
        sender.is_stopping = True
        await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    for room_id in rooms:
        sent = [event.event_id for event in sender.acknowledged if event.room_id == room_id]
        found = await read_when_there(device, room_id, len(sent))
        assert found == sent[::-1], f"{room_id}: {len(found)} of {len(sent)}, or another order"
    numbers = await read_messages(device, since, sender.count)
    assert numbers == [f"t{number}" for number in range(sender.count)], f"{len(numbers)} messages of {sender.count}"
    return report


async def read_when_there(device: Device, room_id: RoomId, count: int) -> list[EventId]:
    """All messages of a room, the newest first, once there are so many."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        found = await read_back(device, room_id)
        if len(found) >= count or time.monotonic() > end:
            return found
        await asyncio.sleep(RETRY_SECONDS)


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


async def read_messages(device: Device, since: str, count: int) -> list[str]:
    """What came to the device, until there is nothing more."""
    end = time.monotonic() + SETTLE_SECONDS
    numbers: list[str] = []
    while time.monotonic() < end:
        answer = await device.sync(since)
        fresh = [one["content"]["txn"] for one in answer.get("to_device", {}).get("events", [])]
        numbers, since = numbers + fresh, answer["next_batch"]
        if not fresh and len(numbers) >= count:
            break
        if not fresh:
            await asyncio.sleep(RETRY_SECONDS)
    return numbers


def restarting(server: ServerProcess) -> Harm:
    """Kill a whole server, and start it again."""

    async def harm(_chance: random.Random) -> None:
        await server.kill()
        await server.start()

    return harm


class PeeringCluster(ClusterProcess):
    """A cluster that peers reach over TLS at its name."""

    def __init__(self, folder: Path, authority: PeerAuthority, *arguments: Any, **settings: Any) -> None:
        self.peer_port = free_port()
        self._peering = peer_settings(authority, f"localhost:{self.peer_port}", port=self.peer_port)
        super().__init__(folder, *arguments, **settings)
        self.server_name = f"localhost:{self.peer_port}"

    def _write_config(self, settings: dict[str, Any]) -> None:
        resources = [{"names": ["client", "media", "metrics", "health"]}]
        plain = {"port": self.port, "bind_addresses": ["127.0.0.1"], "resources": resources}
        super()._write_config({**self._peering, "listeners": [plain, *self._peering["listeners"]], **settings})

    async def kill_one(self, chance: random.Random) -> None:
        """SIGKILL one federation_in while another one is there; whoever watches over them starts it again."""
        async with asyncio.timeout(READY_SECONDS):
            while len(ready := self._ready()) < 2:  # noqa: ASYNC110 - the supervisor's file tells
                await asyncio.sleep(0.1)
        self.signal(chance.choice(ready), signal.SIGKILL)

    def _ready(self) -> list[str]:
        return [one["name"] for one in self.processes("federation-in") if one["state"] == "ready"]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ServerApi]:
        """Its client-server API."""
        async with httpx.AsyncClient(base_url=self.base_url, timeout=60) as http:
            yield ServerApi(http)


@asynccontextmanager
async def running_cluster(folder: Path, authority: PeerAuthority) -> AsyncIterator[PeeringCluster]:
    """A small cluster on brokers of its own."""
    valkey, broker = ValkeyProcess(), new_broker(folder / "kafka")
    valkey.start()
    try:
        await asyncio.to_thread(broker.start)
        print(f"on {broker.description}", flush=True)
        own = {"partitions": 16}
        cluster = PeeringCluster(
            folder / "cluster", authority, broker.settings(topic_prefix()), valkey.url, COUNTS, tessera=own
        )
        try:
            await cluster.start()
            yield cluster
        finally:
            await cluster.stop()
    finally:
        broker.kill()
        valkey.remove()


async def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cluster", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-") as text:
        folder = Path(text)
        (folder / "ca").mkdir()
        authority = PeerAuthority(folder / "ca")
        if arguments.cluster:
            async with (
                running_cluster(folder, authority) as cluster,
                cluster.connected() as api,
                small_peer(authority, cluster.server_name) as peer,
            ):
                report = await run(api, peer, cluster.kill_one, kills=arguments.kills, seed=arguments.seed)
        else:
            server = FederatedServer(folder / "server", authority)
            await server.start()
            try:
                async with server.connected() as api, small_peer(authority, server.server_name) as peer:
                    report = await run(api, peer, restarting(server), kills=arguments.kills, seed=arguments.seed)
            finally:
                await server.stop()
    print("\n".join(report.lines()))


if __name__ == "__main__":
    asyncio.run(main())
