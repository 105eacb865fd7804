"""One message through the whole server, followed from the PUT to the listener's /sync."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from prometheus_client import REGISTRY

from tests.fixtures.recorded_traces import RecordedTraces, recorded_traces
from tests.fixtures.whole_server import Device, WholeServer, running_whole_server


@pytest.fixture
async def server(dsn: str, tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with running_whole_server(dsn, tmp_path) as server:
        yield server


async def until(holds: Callable[[], Any]) -> None:
    """Let the server's own tasks run until something holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - spans and gauges wake nobody
            await asyncio.sleep(0)


async def listen(device: Device, sends: Callable[[], Any]) -> dict[str, Any]:
    """What a parked /sync of the device brings once it waits and `sends` was called."""
    since = (await device.sync())["next_batch"]
    waiting = REGISTRY.get_sample_value("tessera_sync_parked") or 0
    listening = asyncio.create_task(device.sync(since, timeout=20_000))
    await until(lambda: (REGISTRY.get_sample_value("tessera_sync_parked") or 0) > waiting)
    await sends()
    return await listening


def parent_of(span: ReadableSpan, spans: list[ReadableSpan]) -> ReadableSpan | None:
    if span.parent is None:
        return None
    (found,) = (one for one in spans if one.context is not None and one.context.span_id == span.parent.span_id)
    return found


async def test_a_message_is_one_trace_from_put_to_sync(server: WholeServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await alice.make_room(preset="public_chat")
    await bob.post(f"/join/{room_id}")
    with recorded_traces() as traces:
        answer = await listen(bob, lambda: alice.send(room_id, "follow me"))
        await until(lambda: traces.named("rooms.announce") and traces.named("rooms.batch"))
    assert "follow me" in str(answer["rooms"]["join"][room_id])
    _check_chain(traces)


def _check_chain(traces: RecordedTraces) -> None:
    put = traces.only("PUT send_message")
    trace_id = put.context.trace_id  # type: ignore[union-attr]
    spans = [span for span in traces.spans if span.context is not None and span.context.trace_id == trace_id]
    by_name = {span.name: span for span in spans}
    assert {
        "PUT send_message",
        "room_commands.submit",
        "rooms.batch",
        "rooms.append",
        "rooms.build",
        "rooms.commit",
        "rooms.publish",
        "rooms.announce",
        "sync.deliver",
    } <= by_name.keys()
    ways = {
        "room_commands.submit": "PUT send_message",
        "rooms.append": "room_commands.submit",
        "rooms.batch": "room_commands.submit",
        "rooms.commit": "rooms.batch",
        "rooms.announce": "rooms.append",
        "sync.deliver": "rooms.append",
    }
    for name, parent in ways.items():
        found = parent_of(by_name[name], spans)
        assert found is not None
        assert found.name == parent, name
    (link,) = by_name["sync.deliver"].links
    listeners = [span.context for span in traces.named("GET sync")]
    assert link.context in listeners, "the delivery is linked to the listener's own request"


async def test_delivery_is_timed_by_group_of_partitions(server: WholeServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await alice.make_room(preset="public_chat")
    await bob.post(f"/join/{room_id}")

    def delivered() -> float:
        groups = [f"{group:02}" for group in range(16)]
        counts = [REGISTRY.get_sample_value("tessera_delivery_seconds_count", {"partition_group": g}) for g in groups]
        return sum(count or 0 for count in counts)

    before, woken = delivered(), REGISTRY.get_sample_value("tessera_sync_wake_seconds_count") or 0
    await listen(bob, lambda: alice.send(room_id, "quick"))
    assert delivered() == before + 1
    assert REGISTRY.get_sample_value("tessera_sync_wake_seconds_count") == woken + 1
    since = (await bob.sync())["next_batch"]
    await alice.send(room_id, "while nobody waits")
    assert "while nobody waits" in str(await bob.sync(since))
    assert delivered() == before + 1, "a client's absence is not our delay"
