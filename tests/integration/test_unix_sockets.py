"""Listening on a Unix socket: permissions, leftovers, and who the clients are."""

import json
import socket
import stat
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from services.listening import HttpServers, bind, close, urls_of
from tessera.config import Listener, Settings
from tessera.service import CannotStart


async def say_who(scope: Scope, _receive: Receive, send: Send) -> None:
    """An application that answers the client's address."""
    body = json.dumps(scope["client"]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_requests_over_a_socket(tmp_path: Path) -> None:
    listener = Listener(path=tmp_path / "tessera.sock", mode=0o600)
    sockets = bind(listener)
    assert stat.S_IMODE((tmp_path / "tessera.sock").stat().st_mode) == 0o600
    assert list(urls_of(listener, sockets)) == [f"unix:{tmp_path}/tessera.sock"]
    servers = HttpServers(Settings.for_tests())
    await servers.start(say_who, listener, sockets)
    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "tessera.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/")).json()[0] == "127.0.0.1"
        headers = {"X-Forwarded-For": "1.1.1.1, 203.0.113.7"}
        assert (await client.get("/", headers=headers)).json()[0] == "203.0.113.7"
    await servers.stop()
    close(listener, sockets)
    assert not (tmp_path / "tessera.sock").exists()


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.listen()
    with pytest.raises(CannotStart, match="another process does"):
        bind(Listener(path=path))
    left.close()
    assert path.is_socket()
    for bound in bind(Listener(path=path)):
        bound.close()


@pytest.mark.parametrize("name", ["file", "no-folder/tessera.sock", "x" * 200])
def test_paths_that_cannot_be_had(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CannotStart, match="cannot listen on"):
        bind(Listener(path=tmp_path / name))
    assert (tmp_path / "file").read_text() == "precious"
