"""The nightly dump of deploy/k8s, taken while people talk, brought back into new databases."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tessera.embedded_postgres import EmbeddedPostgres
from tessera.embedded_postgres.distribution import find_distribution
from tests.conftest import run_sql
from tests.fixtures.whole_server import Device, running_whole_server

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "k8s" / "components" / "backup" / "backup.sh"
PROGRAMS = find_distribution().root / "bin"

# pg_dump that waits before it dumps the rooms, so that something happens between the two dumps.
WAITING = """#!/bin/sh
case "$*" in
*rooms.dump*) touch "$PAUSES/reached"; while [ ! -e "$PAUSES/go_on" ]; do sleep 0.02; done ;;
esac
exec "{programs}/pg_dump" "$@"
"""


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder


async def start_backup(folder: Path, backups: Path, dsns: dict[str, str]) -> asyncio.subprocess.Process:
    """Start the script with a pg_dump that pauses between the account store and the rooms."""
    (folder / "dsns").mkdir()
    for name, dsn in dsns.items():
        (folder / "dsns" / name).write_text(dsn)
    (folder / "bin").mkdir()
    waiting = folder / "bin" / "pg_dump"
    waiting.write_text(WAITING.format(programs=PROGRAMS))
    waiting.chmod(0o755)
    places = {"DSNS": folder / "dsns", "BACKUPS": backups, "PAUSES": folder}
    path = f"{folder / 'bin'}:{PROGRAMS}:{os.environ['PATH']}"
    environment = {**{name: str(place) for name, place in places.items()}, "PATH": path}
    return await asyncio.create_subprocess_exec(SCRIPT, env=environment, stdout=asyncio.subprocess.DEVNULL)


async def restore(postgres: EmbeddedPostgres, dump: Path, name: str) -> str:
    """A new database from a dump; its DSN."""
    await run_sql(postgres, f"CREATE DATABASE {name}")
    dsn = postgres.dsn(name)
    words = ("--exit-on-error", "--no-owner", f"--dbname={dsn}", str(dump))
    process = await asyncio.create_subprocess_exec(PROGRAMS / "pg_restore", *words)
    assert await process.wait() == 0
    return dsn


async def test_a_backup_taken_under_way_brings_everything_back(
    postgres: EmbeddedPostgres, new_database: Callable[[], Awaitable[str]], tmp_path: Path, backups: Path
) -> None:
    accounts, rooms = await new_database(), await new_database()
    async with running_whole_server(accounts, tmp_path, shards={"rooms": rooms}) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        room_id = await alice.make_room(preset="public_chat")
        await alice.send(room_id, "before the backup")
        backup = await start_backup(tmp_path, backups, {"accounts": accounts, "rooms": rooms})
        await until_exists(tmp_path / "reached")
        # The account store is dumped: it knows nothing of what follows.
        await bob.post(f"/join/{room_id}")
        await bob.send(room_id, "between the two dumps")
        (tmp_path / "go_on").touch()
        assert await backup.wait() == 0
        await alice.send(room_id, "after the backup")
    (taken,) = os.listdir(backups)
    folder = backups / taken
    assert sorted(os.listdir(folder)) == ["accounts.dump", "rooms.dump"]

    name = urlsplit(accounts).path[1:]
    restored = [
        await restore(postgres, folder / f"{one}.dump", f"restored_{one}_{name}") for one in ("accounts", "rooms")
    ]
    try:
        async with running_whole_server(restored[0], tmp_path, shards={"rooms": restored[1]}) as server:
            alice, bob = await server.login("alice"), await server.login("bob")
            await until_joined(bob, room_id)
            texts = await texts_of(bob, room_id)
            assert texts == ["before the backup", "between the two dumps"]
            await bob.send(room_id, "life goes on")
            assert (await texts_of(alice, room_id))[-1] == "life goes on"
    finally:
        for dsn in restored:
            await run_sql(postgres, f"DROP DATABASE {urlsplit(dsn).path[1:]} WITH (FORCE)")


async def until_exists(path: Path) -> None:
    async with asyncio.timeout(20):
        while path.name not in os.listdir(path.parent):  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)


async def until_joined(device: Device, room_id: str) -> None:
    """Until the projector has brought the account store up to the rooms."""
    async with asyncio.timeout(20):
        while room_id not in (await device.get("/joined_rooms"))["joined_rooms"]:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def texts_of(device: Device, room_id: str) -> list[str]:
    """The room's messages, oldest first."""
    chunk = (await device.get(f"/rooms/{room_id}/messages", dir="f"))["chunk"]
    return [event["content"]["body"] for event in chunk if event["type"] == "m.room.message"]


async def test_an_unfinished_backup_is_none(tmp_path: Path, backups: Path) -> None:
    (tmp_path / "dsns").mkdir()
    (tmp_path / "dsns" / "accounts").write_text("postgresql://nobody@127.0.0.1:1/none")
    environment = {"DSNS": str(tmp_path / "dsns"), "BACKUPS": str(backups), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(SCRIPT, env=environment, stdout=quiet, stderr=quiet)
    assert await process.wait() != 0
    assert all(name.endswith(".part") for name in os.listdir(backups))
