"""One message through separate processes, Kafka and Redis, followed by its trace."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.fixtures.service_process import ServiceProcess, change_config
from tests.fixtures.trace_collector import CollectedSpan, running_collector
from tests.fixtures.whole_server import Device, ServerApi

pytestmark = pytest.mark.timeout(300)
Start = Callable[[str, str], Awaitable[ServiceProcess]]


async def test_a_trace_leads_through_every_process(config: Path, service: Start) -> None:
    with running_collector() as collector:
        change_config(config, telemetry={"otlp_endpoint": collector.url, "sample_ratio": 1.0})
        writer, sync, gateway = await asyncio.gather(
            service("rooms", "rooms-1"), service("sync", "sync-1"), service("gateway", "gateway-1")
        )
        async with (
            httpx.AsyncClient(base_url=gateway.url, timeout=60) as to_gateway,
            httpx.AsyncClient(base_url=sync.url, timeout=60) as to_sync,
        ):
            alice = await ServerApi(to_gateway).register("alice")
            room_id = await alice.make_room(preset="private_chat")
            listener = Device(
                to_sync, {"user_id": alice.user_id, "device_id": alice.device_id, "access_token": alice.token}
            )
            since = (await listener.sync())["next_batch"]
            listening = asyncio.create_task(listener.sync(since, timeout=20_000))
            await until_parked(to_sync)
            await alice.send(room_id, "follow me")
            assert "follow me" in str((await listening)["rooms"])
        # The last spans are sent when a process ends.
        for process in (gateway, sync, writer):
            assert await process.stop() == 0, process.said()
        check(collector.spans)


def check(spans: list[CollectedSpan]) -> None:
    (put,) = (span for span in spans if span.name == "PUT send_message")
    own = [span for span in spans if span.trace_id == put.trace_id]
    found = {span.name: span for span in own}
    parents = {span.span_id: span for span in own}
    for process, name, parent in (
        ("gateway-1", "room_commands.submit", "PUT send_message"),
        ("rooms-1", "rooms.batch", "room_commands.submit"),
        ("rooms-1", "rooms.append", "room_commands.submit"),
        ("rooms-1", "rooms.announce", "rooms.append"),
        ("sync-1", "sync.deliver", "rooms.append"),
    ):
        assert found[name].process == process
        assert parents[found[name].parent_id].name == parent
    listeners = {span.span_id for span in spans if span.name == "GET sync"}
    assert set(found["sync.deliver"].links) <= listeners
    assert found["sync.deliver"].links


async def until_parked(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while "tessera_sync_parked 1.0" not in (await http.get("/metrics")).text:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
