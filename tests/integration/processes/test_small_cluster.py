"""`tessera cluster` on real brokers: what one server does, several processes do behind one port."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tessera.config import KafkaSettings
from tests.fixtures.service_process import ClusterProcess
from tests.fixtures.valkey import ValkeyProcess
from tests.fixtures.whole_server import Device, ServerApi

pytestmark = pytest.mark.timeout(300)
COUNTS = {"gateways": 2, "writers": 2, "syncs": 2, "media": 1, "projectors": 1}


@pytest.fixture
async def cluster(
    tmp_path: Path, kafka_settings: KafkaSettings, valkey: ValkeyProcess, dsn: str
) -> AsyncIterator[ClusterProcess]:
    """A small cluster on an empty database."""
    own = {"accounts_dsn": dsn, "allow_unsafe_postgres": True, "partitions": 16}
    process = ClusterProcess(tmp_path / "cluster", kafka_settings, valkey.url, COUNTS, tessera=own)
    await process.start()
    yield process
    assert await process.stop() == 0, process.log.read_text()[-4000:]


@pytest.fixture
async def server(cluster: ClusterProcess) -> AsyncIterator[ServerApi]:
    """Its clients' side."""
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=cluster.base_url, timeout=60, limits=limits) as http:
        yield ServerApi(http)


async def test_people_talk_while_processes_come_and_go(cluster: ClusterProcess, server: ServerApi) -> None:
    """Nothing is lost or doubled, and whoever sends waits no longer than a lease."""
    alice, bob = await server.register("alice"), await server.register("bob")
    rooms = [await alice.make_room(preset="public_chat") for _ in range(4)]
    for room_id in rooms:
        await bob.post(f"/join/{room_id}")
    heard = Listening(bob)
    listening = asyncio.create_task(heard.run())
    sending = [Sending(alice, room_id) for room_id in rooms]
    tasks = [asyncio.create_task(one.run()) for one in sending]

    await asyncio.sleep(1)
    pauses: dict[str, float] = {}
    for what, name, number in (
        ("a writer is rolled", "rooms-1", signal.SIGTERM),
        ("a gateway is rolled", "gateway-1", signal.SIGTERM),
        ("a writer is killed", "rooms-2", signal.SIGKILL),
        ("a sync process is killed", "sync-1", signal.SIGKILL),
        ("a gateway is killed", "gateway-2", signal.SIGKILL),
        ("the projector is killed", "projector-1", signal.SIGKILL),
    ):
        for one in sending:
            one.longest = 0.0
        pid = next(one["pid"] for one in cluster.processes() if one["name"] == name)
        cluster.signal(name, number)
        await cluster.until(name, state="ready", not_pid=pid)
        await asyncio.sleep(1)
        pauses[what] = max(one.longest for one in sending)

    for one in sending:
        one.stopping = True
    await asyncio.gather(*tasks)
    sent = {room_id: one.sent for room_id, one in zip(rooms, sending, strict=True)}
    async with asyncio.timeout(30):
        while heard.events != sent:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    listening.cancel()
    for room_id in rooms:
        page = await bob.get(f"/rooms/{room_id}/messages", dir="f", limit=1000)
        stored = [event["event_id"] for event in page["chunk"] if event["type"] == "m.room.message"]
        assert stored == sent[room_id]
    assert sum(len(events) for events in sent.values()) > 100
    assert not [one for one in sending if one.failures > 0], [one.failures for one in sending]
    assert pauses["a gateway is rolled"] < 2, pauses
    assert pauses["a writer is rolled"] < 2, pauses
    assert max(pauses.values()) < 8, pauses


class Sending:
    """Sends one message after the other to a room, each until it is taken, under one transaction ID."""

    def __init__(self, device: Device, room_id: str) -> None:
        self.device = device
        self.room_id = room_id
        self.sent: list[str] = []
        self.longest = 0.0
        self.failures = 0
        self.stopping = False

    async def run(self) -> None:
        number = 0
        while not self.stopping:
            number += 1
            began = time.monotonic()
            body = {"msgtype": "m.text", "body": f"{number}"}
            while True:
                path = f"/rooms/{self.room_id}/send/m.room.message/{number}"
                status, answer = await self.device.call("PUT", path, body)
                if status == 200:
                    break
                assert status in (502, 503), answer
                self.failures += 1
                await asyncio.sleep(0.2)
            self.sent.append(answer["event_id"])
            self.longest = max(self.longest, time.monotonic() - began)
            await asyncio.sleep(0.05)


class Listening:
    """Long-polls, and keeps the messages of each room in the order in which they came."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.events: dict[str, list[str]] = {}

    async def run(self) -> None:
        since: str | None = None
        while True:
            query = {"timeout": 10_000, "filter": '{"room":{"timeline":{"limit":1000}}}'}
            if since is not None:
                query["since"] = since
            status, answer = await self.device.call("GET", "/sync", **query)
            if status != 200:
                assert status in (502, 503), answer
                await asyncio.sleep(0.2)
                continue
            since = answer["next_batch"]
            for room_id, room in answer.get("rooms", {}).get("join", {}).items():
                seen = self.events.setdefault(room_id, [])
                seen += [e["event_id"] for e in room["timeline"]["events"] if e["type"] == "m.room.message"]


async def test_media_and_large_bodies_pass_the_proxy(cluster: ClusterProcess, server: ServerApi) -> None:
    alice = await server.register("alice")
    content = bytes(range(256)) * 12_000  # 3 MiB: neither kept by the proxy nor read whole
    reply = await server.http.post(
        "/_matrix/media/v3/upload", content=content, headers={"Authorization": f"Bearer {alice.token}"}
    )
    assert reply.status_code == 200, reply.text
    place = reply.json()["content_uri"].removeprefix("mxc://")
    reply = await server.http.get(
        f"/_matrix/client/v1/media/download/{place}", headers={"Authorization": f"Bearer {alice.token}"}
    )
    assert reply.content == content
    # What looks like another host is a path, and what is no path goes nowhere.
    assert await raw_status(cluster.port, "//127.0.0.1:1/_matrix/client/versions") == 404
    assert await raw_status(cluster.port, "http://127.0.0.1:1/_matrix/client/versions") == 400


async def raw_status(port: int, target: str) -> int:
    """The answer to a request whose target no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    status = (await reader.readline()).split()[1]
    writer.close()
    return int(status)
