"""Long, slow and broken requests to a real server: it answers, and its memory stays what it was."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from target_server import PASSWORD

from tests.fixtures.server_process import ServerProcess

MIB = 1 << 20
BODY = 50 * MIB
# What the process may grow by while it refuses 1,200 MiB: the connections' own buffers, not the bodies.
FLAT_BYTES = 32 * MIB
LONG_HEADER = 32 * MIB  # more than the kernel holds for a server that does not read yet
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture
async def server(folder: Path) -> AsyncIterator[ServerProcess]:
    """A server whose database is kept from test to test."""
    process = ServerProcess(folder)
    await process.start()
    yield process
    await process.stop()


@pytest.fixture
async def http(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that is logged in."""
    async with aiohttp.ClientSession(server.base_url) as session:
        name = f"user{server.port}"
        body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        async with session.post("/_matrix/client/v3/register", json=body) as reply:
            token = (await reply.json())["access_token"]
        session.headers["Authorization"] = f"Bearer {token}"
        yield session


def resident_bytes(server: ServerProcess) -> int:
    """The server's memory."""
    pages = Path(f"/proc/{server.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def _zeros(size: int) -> AsyncIterator[bytes]:
    piece = b"0" * (256 * 1024)
    for _ in range(size // len(piece)):
        yield piece


async def _status_of(http: aiohttp.ClientSession, method: str, path: str, size: int, *, declared: bool) -> int | None:
    """The status of a request with a long body; None if the server cut the connection instead."""
    headers = {"Content-Length": str(size)} if declared else {}
    try:
        async with http.request(method, path, data=_zeros(size), headers=headers) as reply:
            assert json.loads(await reply.read())["errcode"] == "M_TOO_LARGE"
            return reply.status
    except (aiohttp.ClientConnectionError, ConnectionError):
        return None


async def test_fifty_mebibytes_are_refused_in_flat_memory(server: ServerProcess, http: aiohttp.ClientSession) -> None:
    paths = [
        ("POST", "/_matrix/client/v3/createRoom"),
        ("PUT", "/_matrix/client/v3/rooms/!a:chat.example/send/m.room.message/1"),
        ("POST", "/_matrix/client/v3/login"),
        ("POST", "/_matrix/client/v3/keys/upload"),
    ]
    before = resident_bytes(server)
    peak = before
    for declared in (True, False):
        requests = [asyncio.create_task(_status_of(http, *path, BODY, declared=declared)) for path in paths * 3]
        while not all(request.done() for request in requests):
            await asyncio.wait(requests, timeout=0.02)
            peak = max(peak, resident_bytes(server))
        statuses = [request.result() for request in requests]
        assert set(statuses) <= {413, None}
        assert 413 in statuses
    assert peak - before < FLAT_BYTES
    async with http.get("/_matrix/client/v3/account/whoami") as reply:
        assert reply.status == 200


async def test_an_upload_streams_through(server: ServerProcess, http: aiohttp.ClientSession) -> None:
    before = resident_bytes(server)
    peak = before
    headers = {"Content-Type": "application/octet-stream"}
    upload = asyncio.create_task(_upload(http, BODY, headers))
    while not upload.done():
        await asyncio.wait([upload], timeout=0.02)
        peak = max(peak, resident_bytes(server))
    assert upload.result() == 200
    assert await _upload(http, BODY + MIB, headers) in (413, None)
    assert peak - before < FLAT_BYTES


async def _upload(http: aiohttp.ClientSession, size: int, headers: dict[str, str]) -> int | None:
    try:
        async with http.post("/_matrix/media/v3/upload", data=_zeros(size), headers=headers) as reply:
            await reply.read()
            return reply.status
    except (aiohttp.ClientConnectionError, ConnectionError):
        return None


async def test_slow_bodies_hold_nobody_up(server: ServerProcess, http: aiohttp.ClientSession) -> None:
    head = (
        b"PUT /_matrix/client/v3/profile/@a:chat.example/displayname HTTP/1.1\r\nHost: chat.example\r\n"
        b"Authorization: " + http.headers["Authorization"].encode() + b"\r\nContent-Length: 1000\r\n\r\n"
    )
    before = resident_bytes(server)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            stack.callback(writer.close)
            writer.write(head + b"{")
            await writer.drain()
        async with asyncio.timeout(5):
            for _ in range(20):
                async with http.get("/_matrix/client/v3/account/whoami") as reply:
                    assert reply.status == 200
        assert resident_bytes(server) - before < FLAT_BYTES


_START = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"


_ENDLESS = [
    (_START, b"X-Filler: aaaaaaaaaaaaaaaa\r\n" * 2_000),
    (_START + b"X-Long: ", b"a" * 60_000),
    (b"GET /_matrix/client/", b"a" * 60_000),
    (_CHUNKED + b"0\r\n", b"X-Filler: aaaaaaaaaaaaaaaa\r\n" * 2_000),
    (_CHUNKED + b"1;", b"a" * 60_000),
    (b"", b"\r\n" * 30_000),
]


async def test_endless_heads_are_cut_off(server: ServerProcess) -> None:
    before = resident_bytes(server)
    for start, more in _ENDLESS:
        answer, sent = await _pour(server, start, more)
        assert sent < LONG_HEADER, start
        # Who still sends when the connection is closed may lose the answer.
        assert answer == b"" or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert resident_bytes(server) - before < FLAT_BYTES


async def _pour(server: ServerProcess, start: bytes, more: bytes) -> tuple[bytes, int]:
    """Send a head that does not end until the server has enough; its answer, and how much it took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    sent = 0
    answer = asyncio.create_task(_read_all(reader))
    try:
        writer.write(start)
        while sent < LONG_HEADER and not answer.done():
            writer.write(more)
            await writer.drain()
            sent += len(more)
            await asyncio.wait([answer], timeout=0.005)
    except ConnectionError:
        pass
    finally:
        writer.close()
    return await answer, sent


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


_NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 100,
    b"GET\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /_matrix/client/versions HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
]


async def test_what_is_no_http(server: ServerProcess) -> None:
    for request in _NO_HTTP:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        writer.write_eof()
        async with asyncio.timeout(10):
            answer = await _read_all(reader)
        writer.close()
        assert b"HTTP/1.1 5" not in answer, request
    assert "Traceback" not in server.log.read_text()
