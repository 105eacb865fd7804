"""`tessera partitions`: an operator moves partitions between writers that run."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.database import Database
from tessera.storage.migrations import Tree, migrate
from tests.conftest import FORGETFUL
from tests.fixtures.service_process import ServiceProcess, change_config

pytestmark = pytest.mark.timeout(180)
OWNERS = "SELECT w.name FROM rooms.leases l JOIN rooms.writers w USING (owner) WHERE l.partition = $1"
COUNT = "SELECT count(*) FROM rooms.leases l JOIN rooms.writers w USING (owner) WHERE w.name = $1"


async def partitions(config: Path, *words: str) -> tuple[int, str]:
    """Exit status and output of `tessera partitions`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "partitions", *words, "--config", str(config)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert b"Traceback" not in error
    return process.returncode or 0, (out if process.returncode == 0 else error).decode()


async def test_an_operator_moves_partitions(
    service: Callable[[str, str], Awaitable[ServiceProcess]], config: Path, store: Database
) -> None:
    await service("rooms", "one")
    status, said = await partitions(config, "drain", "one")
    assert (status, "no other writer" in said) == (1, True)
    assert (await partitions(config, "drain", "one", "--off"))[0] == 0
    await service("rooms", "two")
    async with asyncio.timeout(30):
        while await store.fetchval(COUNT, "two") != 4:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    status, said = await partitions(config, "list")
    lines = [line.split() for line in said.splitlines()[1:]]
    assert status == 0
    assert [line[0] for line in lines] == [str(number) for number in range(8)]
    assert sorted(line[2] for line in lines) == ["one"] * 4 + ["two"] * 4
    assert {tuple(line[5:]) for line in lines} == {("0", "0", "-1", "0")}  # head, unannounced, done, undone

    moved = next(int(line[0]) for line in lines if line[2] == "one")
    assert await partitions(config, "handover", str(moved), "two") == (0, f"two writes partition {moved}\n")
    assert await store.fetchval(OWNERS, moved) == "two"
    for words, reason in (
        (("handover", str(moved), "three"), "there is one, two"),
        (("handover", "8", "one"), "they are 0 to 7"),
        (("drain", "three"), "there is one, two"),
    ):
        status, said = await partitions(config, *words)
        assert (status, reason in said) == (1, True), said

    assert await partitions(config, "drain", "one") == (0, "one writes nothing any more\n")
    assert await store.fetchval(COUNT, "two") == 8
    assert (await partitions(config, "drain", "one", "--off"))[0] == 0
    async with asyncio.timeout(30):
        while await store.fetchval(COUNT, "one") != 4:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_restore_is_told_when_nobody_writes(
    service: Callable[[str, str], Awaitable[ServiceProcess]], config: Path, store: Database
) -> None:
    writer = await service("rooms", "one")
    status, said = await partitions(config, "restored")
    assert (status, "stop all processes first: one writes" in said) == (1, True), said
    await writer.stop()
    assert await partitions(config, "restored") == (0, "8 partitions begin a new incarnation\n")
    assert await store.fetchval("SELECT count(*) FROM rooms.partitions WHERE incarnation > 1 AND head = 1") == 8
    await service("rooms", "one")
    async with asyncio.timeout(30):
        while await store.fetchval(COUNT, "one") != 8:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_the_list_shows_what_it_can_while_a_shard_is_away(
    config: Path, store: Database, dsn: str, tmp_path: Path
) -> None:
    other = EmbeddedPostgres(tmp_path / "other", settings=FORGETFUL)
    await other.start()
    try:
        await migrate(other.dsn(), Tree.ROOMS)
        change_config(config, shards={"main": dsn, "other": other.dsn()})
        await store.execute("UPDATE accounts.partition_placement SET shard = 'other' WHERE partition >= 6")
    finally:
        await other.stop()
    status, said = await partitions(config, "list")
    assert status == 0, said
    assert "shard other is away" in said
    lines = [words for words in map(str.split, said.splitlines()) if words and words[0].isdigit()]
    assert sorted(int(line[0]) for line in lines if line[1] == "main") == list(range(8))
    assert [(line[0], line[2:]) for line in lines if line[1] == "other"] == [
        ("6", ["shard", "away"]),
        ("7", ["shard", "away"]),
    ]
