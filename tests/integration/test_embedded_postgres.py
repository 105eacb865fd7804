"""The embedded server: data survive stops and kills, two owners are refused, every refusal is one clear line."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tessera.embedded_postgres import FORGETFUL, EmbeddedPostgres, EmbeddedPostgresError
from tessera.embedded_postgres.postmaster import is_postmaster_of

OWNER = """
import asyncio, sys
from pathlib import Path
from tessera.embedded_postgres import EmbeddedPostgres
async def main():
    server = EmbeddedPostgres(Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that only its owner may enter, as /root is; tests run by root prove that PostgreSQL gets through."""
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
        Path(folder).chmod(0o700)
        yield Path(folder)


async def query(server: EmbeddedPostgres, sql: str) -> object:
    connection = await asyncpg.connect(server.dsn())
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def start_owner(directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Another process that has the server running; its PostgreSQL's process ID."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, directory], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    return owner, int(owner.stdout.readline())


def start_stranger() -> subprocess.Popen[bytes]:
    """A process that has nothing to do with PostgreSQL."""
    return subprocess.Popen(["/bin/sleep", "60"])


def kill(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()
    assert owner.stdout is not None
    owner.stdout.close()


async def test_data_survive_a_restart_with_the_settings_of_a_server(closed_folder: Path) -> None:
    async with EmbeddedPostgres(closed_folder / "pg") as server:
        await query(server, "CREATE TABLE t AS SELECT 42 AS x")
        assert await query(server, "SHOW fsync") == "on"
        assert await query(server, "SHOW server_encoding") == "UTF8"
        assert await query(server, "SELECT datcollate FROM pg_database WHERE datname = 'tessera'") == "C"
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid, "the terminal's Ctrl-C must not reach it"
    assert server.pid is None
    async with EmbeddedPostgres(closed_folder / "pg") as again:
        assert await query(again, "SELECT x FROM t") == 42
    assert mode_of(closed_folder) == 0o700, "the folders above are left as they are"


async def test_nobody_enters_without_the_password(closed_folder: Path) -> None:
    async with EmbeddedPostgres(closed_folder / "pg", settings=FORGETFUL) as server:
        password = (closed_folder / "pg" / "password").read_text().strip()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.dsn().replace(password, "another"))
    assert mode_of(closed_folder / "pg" / "password") == 0o600


async def test_a_second_owner_is_refused_and_does_no_harm(closed_folder: Path) -> None:
    async with EmbeddedPostgres(closed_folder / "pg", settings=FORGETFUL) as server:
        with pytest.raises(EmbeddedPostgresError, match=f"another Tessera process .process ID {os.getpid()}"):
            await EmbeddedPostgres(closed_folder / "pg").start()
        assert await query(server, "SELECT 1") == 1


async def test_the_server_of_a_killed_owner_is_taken_over(closed_folder: Path) -> None:
    owner, pid = start_owner(closed_folder / "pg")
    kill(owner)
    assert is_postmaster_of(pid, closed_folder / "pg" / "cluster")
    async with EmbeddedPostgres(closed_folder / "pg") as successor:
        assert successor.pid == pid
        assert await query(successor, "SELECT 1") == 1
    assert not is_postmaster_of(pid, closed_folder / "pg" / "cluster")


async def test_a_server_with_other_settings_is_replaced(closed_folder: Path) -> None:
    owner, pid = start_owner(closed_folder / "pg")
    kill(owner)
    async with EmbeddedPostgres(closed_folder / "pg", settings={"work_mem": "5MB"}) as successor:
        assert successor.pid != pid
        assert await query(successor, "SHOW work_mem") == "5MB"


async def test_a_killed_server_whose_process_number_somebody_else_got(closed_folder: Path) -> None:
    server = EmbeddedPostgres(closed_folder / "pg")
    await server.start()
    await query(server, "CREATE TABLE t AS SELECT 7 AS x")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await server.stop()
    stranger = start_stranger()
    pid_file = closed_folder / "pg" / "cluster" / "postmaster.pid"
    pid_file.write_text("\n".join([str(stranger.pid), *pid_file.read_text().splitlines()[1:]]) + "\n")
    try:
        async with server:
            assert await query(server, "SELECT x FROM t") == 7
        assert stranger.poll() is None, "the stranger must not be stopped"
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_path_too_long_for_a_socket_means_the_loopback(closed_folder: Path) -> None:
    directory = closed_folder / ("d" * 100) / "pg"
    async with EmbeddedPostgres(directory, settings=FORGETFUL) as server:
        assert "@127.0.0.1:" in server.dsn()
        assert await query(server, "SELECT inet_server_addr() = '127.0.0.1'") is True


async def test_a_crash_during_initdb_leaves_nothing_behind(closed_folder: Path) -> None:
    half_made = closed_folder / "pg" / "cluster.unfinished" / "files"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(closed_folder / "pg", settings=FORGETFUL) as server:
        assert await query(server, "SELECT 1") == 1
    assert not half_made.parent.exists()


async def test_cancelling_the_start_leaves_no_server_and_no_lock(closed_folder: Path) -> None:
    server = EmbeddedPostgres(closed_folder / "pg", settings=FORGETFUL)
    start = asyncio.create_task(server.start())
    await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert server.pid is None
    async with EmbeddedPostgres(closed_folder / "pg", settings=FORGETFUL) as again:
        assert await query(again, "SELECT 1") == 1


async def test_another_major_version_is_named(closed_folder: Path) -> None:
    cluster = closed_folder / "pg" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("12\n")
    (closed_folder / "pg" / "password").write_text("x")
    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 12, but 18 is installed"):
        await EmbeddedPostgres(closed_folder / "pg").start()


async def test_a_wrong_setting_is_told_in_one_line(closed_folder: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"did not start: FATAL:.*no_such_setting") as caught:
        await EmbeddedPostgres(closed_folder / "pg", settings={**FORGETFUL, "no_such_setting": "1"}).start()
    assert "\n" not in str(caught.value)


async def test_a_place_that_cannot_be_written_is_told_in_one_line(closed_folder: Path) -> None:
    (closed_folder / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match="file"):
        await EmbeddedPostgres(closed_folder / "file" / "pg").start()
