"""A whole cluster on two room shards in two PostgreSQL servers: partitions move under load, one server goes away."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from test_small_cluster import Listening, Sending

from tessera.commands import partition_of
from tessera.config import KafkaSettings
from tessera.embedded_postgres import EmbeddedPostgres
from tests.conftest import FORGETFUL
from tests.fixtures.service_process import ClusterProcess
from tests.fixtures.valkey import ValkeyProcess
from tests.fixtures.whole_server import ServerApi

pytestmark = pytest.mark.timeout(300)
COUNTS = {"gateways": 1, "writers": 2, "syncs": 1, "media": 1, "projectors": 1}
PARTITIONS = 8
FIRST, SECOND = "first", "second"


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """The server of the second shard."""
    server = EmbeddedPostgres(tmp_path / "other", settings=FORGETFUL)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def cluster(
    tmp_path: Path, kafka_settings: KafkaSettings, valkey: ValkeyProcess, dsn: str, other: EmbeddedPostgres
) -> AsyncIterator[ClusterProcess]:
    """Even partitions lie in the first shard, odd ones in the second."""
    own = {
        "accounts_dsn": dsn,
        "shards": {FIRST: dsn, SECOND: other.dsn()},
        "allow_unsafe_postgres": True,
        "partitions": PARTITIONS,
    }
    process = ClusterProcess(tmp_path / "cluster", kafka_settings, valkey.url, COUNTS, tessera=own)
    await process.start()
    yield process
    await process.stop()


async def partitions(cluster: ClusterProcess, *words: str) -> str:
    """What `tessera partitions` says, which must succeed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "partitions", *words, "--config", str(cluster.config)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def go_on(sending: Sequence[Sending], heard: Listening) -> None:
    """When some more has been sent, and everything until then heard."""
    counts = [len(one.sent) for one in sending]
    async with asyncio.timeout(60):
        # Neither of the two tells anybody when it is so far.
        while any(len(one.sent) < count + 20 for one, count in zip(sending, counts, strict=True)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        sent_by_now = {one.room_id: set(one.sent) for one in sending}
        while any(not ids <= set(heard.events[room_id]) for room_id, ids in sent_by_now.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_partitions_move_under_load_and_a_shard_goes_away(
    cluster: ClusterProcess, other: EmbeddedPostgres
) -> None:
    async with httpx.AsyncClient(base_url=cluster.base_url, timeout=60) as http:
        server = ServerApi(http)
        alice, bob = await server.register("alice"), await server.register("bob")
        rooms: dict[int, str] = {}
        while {partition % 2 for partition in rooms} != {0, 1} or len(rooms) < 3:
            room_id = await alice.make_room(preset="public_chat")
            if rooms.setdefault(partition_of(room_id, PARTITIONS), room_id) == room_id:
                await bob.post(f"/join/{room_id}")
        heard = Listening(bob)
        listening = asyncio.create_task(heard.run())
        sending = {partition: Sending(alice, room_id) for partition, room_id in rooms.items()}
        tasks = {partition: asyncio.create_task(one.run()) for partition, one in sending.items()}

        # One goes to the other shard and back under load; sends there wait, and none fails.
        odd = sorted(partition for partition in rooms if partition % 2)
        for target in (FIRST, SECOND):
            assert f"lies in {target}" in await partitions(cluster, "move", str(odd[0]), "--to", target)
            count = len(sending[odd[0]].sent)
            async with asyncio.timeout(30):
                while len(sending[odd[0]].sent) < count + 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        pauses = {partition: one.longest for partition, one in sending.items()}
        assert not any(one.failures for one in sending.values()), pauses
        assert pauses[odd[0]] < 10, pauses

        # The second shard is away: its rooms pause, the others go on.
        await other.stop()
        even = [one for partition, one in sending.items() if partition % 2 == 0]
        for one in even:
            one.longest = 0.0
        await go_on(even, heard)
        assert not any(one.failures for one in even)

        # Processes that start meanwhile serve the rooms of the first.
        killed = [one for one in cluster.processes() if one["service"] != "proxy"]
        for one in killed:
            cluster.signal(one["name"], signal.SIGKILL)
        for one in killed:
            await cluster.until(one["name"], state="ready", not_pid=one["pid"])
        await go_on(even, heard)
        await other.start()
        counts_odd = {partition: len(sending[partition].sent) for partition in odd}
        async with asyncio.timeout(60):
            while any(len(sending[partition].sent) < count + 3 for partition, count in counts_odd.items()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

        for one in sending.values():
            one.stopping = True
        await asyncio.gather(*tasks.values())
        sent = {one.room_id: one.sent for one in sending.values()}
        async with asyncio.timeout(60):
            while heard.events != sent:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        listening.cancel()
        for room_id in rooms.values():
            page = await bob.get(f"/rooms/{room_id}/messages", dir="f", limit=1000)
            stored = [event["event_id"] for event in page["chunk"] if event["type"] == "m.room.message"]
            assert stored == sent[room_id]
        print({partition: round(pause, 2) for partition, pause in pauses.items()})
