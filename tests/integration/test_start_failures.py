"""Starts that cannot succeed: one clear line on stderr, a non-zero exit, nothing half-written."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tessera.config import generate_config
from tessera.storage.database import Database

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A fresh homeserver.yaml on a free port."""
    return generate_config("example.org", tmp_path / "data", port=0)


def tessera(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "services.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


def append(config: Path, text: str) -> None:
    config.write_text(config.read_text() + "\n" + text + "\n")


def complaint(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line that it said."""
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = generate_config("example.org", tmp_path / "data", port=port)
        said = complaint(tessera("serve", "--config", config))
    assert str(port) in said
    assert not (tmp_path / "data" / "postgres").exists(), "the port is tried before anything is made"


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_an_unreachable_database(config: Path, command: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        args = f"{{user: tessera, password: hunter2, host: 127.0.0.1, port: {port}, dbname: tessera}}"
        append(config, f"database: {{name: asyncpg, args: {args}}}")
        said = complaint(tessera(command, "--config", config))
    assert str(port) in said
    assert "hunter2" not in said


async def test_a_newer_schema(config: Path, dsn: str, accounts: Database) -> None:
    await accounts.execute("INSERT INTO accounts.schema_revision (revision) VALUES ('9999')")
    parts = urlsplit(dsn)
    socket_folder = parse_qs(parts.query)["host"][0]
    args = f"{{user: {parts.username}, password: {parts.password}, host: {socket_folder}, dbname: {parts.path[1:]}}}"
    append(config, f"database: {{name: asyncpg, args: {args}}}")
    said = complaint(await asyncio.to_thread(tessera, "serve", "--config", config))
    assert "9999" in said


def test_an_unknown_key_names_the_nearest(config: Path) -> None:
    append(config, "enable_registratoin: true")
    said = complaint(tessera("check-config", "--config", config))
    assert "enable_registratoin" in said
    assert "enable_registration" in said.replace("enable_registratoin", "")


def test_no_configuration(tmp_path: Path) -> None:
    assert "nowhere.yaml" in complaint(tessera("serve", "--config", tmp_path / "nowhere.yaml"))


def test_a_configuration_is_not_overwritten(config: Path) -> None:
    before = config.read_bytes()
    complaint(tessera("generate-config", "--server-name", "other.org", "--data", config.parent))
    assert config.read_bytes() == before
    assert config.stat().st_mode & 0o077 == 0


def test_registering_without_a_server(config: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        ended = tessera("register-user", url, "-c", config, "-u", "a", "-p", "password", "--no-admin")
    assert url in complaint(ended)
