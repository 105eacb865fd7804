"""`tessera partitions`: an operator moves partitions between writers that run."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tessera.storage.database import Database
from tests.fixtures.service_process import ServiceProcess

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
