"""`tessera run`: each service in a process of its own. DESIGN sections 10 and 11."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.database import Database
from tessera.storage.placement import settle_placement
from tests.conftest import run_sql
from tests.fixtures.service_process import ServiceProcess, change_config
from tests.fixtures.valkey import ValkeyProcess

pytestmark = pytest.mark.timeout(180)
Start = Callable[[str, str], Awaitable[ServiceProcess]]
CHECKS = {
    "gateway": {"redis", "kafka", "accounts", "shard main"},
    "rooms": {"redis", "kafka", "accounts", "shard main", "leases"},
    "sync": {"redis", "accounts", "shard main"},
    "media": {"redis", "accounts", "shard main"},
    "projector": {
        *("redis", "kafka", "accounts", "shard main", "leases"),
        *("consumer memberships", "consumer directory", "consumer search", "consumer people"),
        *("consumer upgraded_rooms", "consumer remote_device_lists"),
    },
    "push": {"redis", "kafka", "accounts", "shard main", "leases", "consumer push"},
    "appservice": {"redis", "kafka", "accounts", "shard main"},
}
PATHS = {
    "gateway": "/_matrix/client/versions",
    "sync": "/_matrix/client/v3/sync",
    "media": "/_matrix/client/v1/media/config",
}


async def test_each_service_answers_its_own_paths_and_drains(service: Start) -> None:
    processes = dict(zip(CHECKS, await asyncio.gather(*(service(kind, f"{kind}-1") for kind in CHECKS)), strict=True))
    async with aiohttp.ClientSession() as http:
        for kind, process in processes.items():
            found = await process.until_ready(True)
            assert found["checks"].keys() == CHECKS[kind]
            assert all(found["checks"].values())
            async with http.get(f"{process.url}/metrics") as answer:
                assert "process_resident_memory_bytes" in await answer.text()
            async with http.get(f"{process.url}/health") as answer:
                assert answer.status == 200
            for owner, path in PATHS.items():
                async with http.get(process.url + path) as answer:
                    assert (answer.status == 404) == (owner != kind), (kind, path, answer.status)
    for process in processes.values():
        assert await process.stop() == 0, process.said()
        assert "Traceback" not in process.said()


async def test_ready_tells_of_what_is_away(
    service: Start, valkey: ValkeyProcess, postgres: EmbeddedPostgres, store: Database, dsn: str
) -> None:
    processes = await asyncio.gather(service("gateway", "g"), service("rooms", "r"))
    valkey.kill()
    for process in processes:
        found = await process.until_ready(True, degraded=["redis"])
        assert found["checks"]["accounts"]
    name = dsn.rpartition("/")[2].partition("?")[0]
    await run_sql(postgres, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await run_sql(postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    for process in processes:
        found = await process.until_ready(False)
        assert not found["checks"]["accounts"]
    await run_sql(postgres, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    for process in processes:
        await process.until_ready(True)


async def test_a_process_that_ends_says_so_first(service: Start, config: Path) -> None:
    """For a while it still answers, closing each connection, and /ready says no."""
    change_config(config, drain_notice_seconds=1.5)
    gateway = await service("gateway", "g")
    async with aiohttp.ClientSession() as http:
        gateway.signal(signal.SIGTERM)
        found = await gateway.until_ready(False)
        assert found["closing"] is True
        assert all(found["checks"].values())
        async with http.get(f"{gateway.url}/_matrix/client/versions") as answer:
            assert answer.status == 200
            assert answer.headers["Connection"] == "close"
    assert await gateway.wait() == 0


async def test_a_writer_that_ends_hands_its_partitions_over(service: Start, store: Database) -> None:
    await asyncio.gather(service("rooms", "one"), service("rooms", "two"))
    count = "SELECT count(*) FROM rooms.leases JOIN rooms.writers USING (owner) WHERE name = $1"
    await eventually(store, count, "two", 4)
    await eventually(store, count, "one", 4)
    three = await service("rooms", "three")
    await eventually(store, count, "three", 2)
    assert await three.stop() == 0
    assert await store.fetchval("SELECT count(*) FROM rooms.leases JOIN rooms.writers USING (owner)") == 8
    assert await store.fetchval("SELECT bool_and(clean) FROM rooms.partitions WHERE epoch > 2") is False


async def eventually(store: Database, query: str, name: str, expected: int) -> None:
    async with asyncio.timeout(30):
        while await store.fetchval(query, name) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_second_writer_of_the_same_name_does_not_start(service: Start, config: Path) -> None:
    first = await service("rooms", "one")
    assert "another writer named one is running" in await refused(config, "rooms", "one")
    first.signal(signal.SIGKILL)
    await first.wait()
    assert await (await service("rooms", "one")).stop() == 0


async def refused(config: Path, service: str, name: str = "x") -> str:
    """What a process that does not start says in its last line."""
    process = ServiceProcess(config, service, name)
    await process.begin()
    assert await process.wait() == 1
    said = process.said()
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


async def test_what_cannot_start_says_why_in_one_line(config: Path, store: Database) -> None:
    assert "there is no service identity" in await refused(config, "identity")
    await store.execute("DELETE FROM rooms.schema_revision WHERE revision = '0002'")
    assert "run `tessera migrate`" in await refused(config, "rooms")
    await store.execute("INSERT INTO rooms.schema_revision (revision) VALUES ('0002')")
    await store.execute("UPDATE accounts.partition_placement SET shard = 'elsewhere' WHERE partition = 0")
    assert "`elsewhere`" in await refused(config, "sync")
    await store.execute("DELETE FROM accounts.partition_placement")
    assert "run `tessera migrate`" in await refused(config, "sync")
    async with store.transaction() as tx:
        await settle_placement(tx, 8, ["main"])
    for key, service in (("kafka", "gateway"), ("accounts_dsn", "projector"), ("redis", "media")):
        change_config(config, **{key: None})
        assert f"tessera.{key}" in await refused(config, service)
