"""A server as its operator meets it: accounts by command, TLS."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.fixtures.server_process import ServerProcess, free_port

pytestmark = pytest.mark.timeout(120)
SECRET = "registration-secret"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server with a second listener, which speaks TLS."""
    certificate, key = make_certificate(tmp_path)
    process = ServerProcess(tmp_path / "server", tls_certificate_path=str(certificate), tls_private_key_path=str(key))
    config = yaml.safe_load(process.config.read_text())
    config["listeners"].append({**config["listeners"][0], "port": free_port(), "tls": True})
    process.config.write_text(yaml.safe_dump(config))
    await process.start()
    yield process
    await process.stop()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(["openssl", "req", *made, *subject, *files], check=True, capture_output=True)
    return certificate, key


async def register(*words: str | Path) -> tuple[int, str]:
    """Exit status and output of `tessera register-user`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "register-user", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert b"Traceback" not in said
    return process.returncode or 0, said.decode()


async def log_in(server: ServerProcess, user: str, password: str) -> int:
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": password}
    url = f"{server.base_url}/_matrix/client/v3/login"
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as reply:
        return reply.status


async def test_accounts_are_made_by_command(server: ServerProcess, tmp_path: Path) -> None:
    status, said = await register("-c", server.config, "-u", "alice", "-p", "correct horse", "--admin")
    assert (status, said.strip()) == (0, "made @alice:chat.example")
    assert await log_in(server, "alice", "correct horse") == 200

    status, said = await register("-c", server.config, "-u", "alice", "-p", "another", "--no-admin")
    assert status == 1
    assert "taken" in said
    assert await log_in(server, "alice", "another") == 403

    status, said = await register(server.base_url, "-k", "wrong", "-u", "bob", "-p", "correct horse", "--no-admin")
    assert status == 1
    assert "HMAC incorrect" in said
    assert await log_in(server, "bob", "correct horse") == 403

    password = tmp_path / "password"
    password.write_text("battery staple\n")
    words = (server.base_url, "-k", SECRET, "-u", "bob", "--password-file", password, "--no-admin")
    assert (await register(*words))[0] == 0
    assert await log_in(server, "bob", "battery staple") == 200

    status, said = await register("-c", server.config, "-u", "Not A Name!", "-p", "correct horse", "--no-admin")
    assert status == 1
    assert said.startswith("tessera: ")
    status, said = await register(f"{server.base_url}/health", "-k", SECRET, "-u", "c", "-p", "d", "--no-admin")
    assert status == 1
    assert said.startswith("tessera: ")


async def test_the_tls_listener_serves(server: ServerProcess, tmp_path: Path) -> None:
    port = yaml.safe_load(server.config.read_text())["listeners"][1]["port"]
    url = f"https://127.0.0.1:{port}/_matrix/client/versions"
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    # Somebody who never begins the handshake holds nobody up.
    _, silent = await asyncio.open_connection("127.0.0.1", port)
    async with aiohttp.ClientSession() as http:
        async with http.get(url, ssl=trusting) as reply:
            assert reply.status == 200
            assert "v1.11" in (await reply.json())["versions"]
        for wrong in (f"https://127.0.0.1:{server.port}/", f"http://127.0.0.1:{port}/"):
            with pytest.raises(aiohttp.ClientError):
                await http.get(wrong, ssl=trusting)
    silent.close()
