"""One connection without a network: a transport that remembers, an event loop whose timers are looked at."""

import asyncio
from typing import Any
from unittest.mock import Mock

import orjson
import pytest
from starlette.responses import JSONResponse
from uvicorn.config import Config
from uvicorn.server import ServerState

from tessera.http.server_protocol import HEAD_DEADLINE_SECONDS, MAX_HEAD_BYTES, BoundedHttpProtocol

REQUEST = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Connection:
    """A connection to an application that answers {}; `timers` are the deadlines that are set."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.timers: list[tuple[float, Any, Mock]] = []
        watched = Mock(wraps=loop)
        watched.call_later = self._call_later
        config = Config(JSONResponse({}), lifespan="off", log_config=None)
        self.transport = Transport()
        self.protocol = BoundedHttpProtocol(config, ServerState(), {}, _loop=watched)
        self.protocol.connection_made(self.transport)

    def _call_later(self, delay: float, call: Any, *_args: Any) -> Mock:
        timer = Mock()
        timer.cancel = lambda: self.timers.remove(entry)
        entry = (delay, call, timer)
        self.timers.append(entry)
        return timer

    @property
    def head_timers(self) -> list[Any]:
        return [call for delay, call, _ in self.timers if delay == HEAD_DEADLINE_SECONDS]

    @property
    def refusal(self) -> tuple[int, str]:
        head, _, body = self.transport.written.partition(b"\r\n\r\n")
        return int(head.split()[1]), orjson.loads(body)["errcode"]


@pytest.fixture
async def connection() -> Connection:
    return Connection()


async def answered(connection: Connection) -> bytes:
    for _ in range(20):
        await asyncio.sleep(0)
    return connection.transport.written


async def test_a_request_is_served(connection: Connection) -> None:
    connection.protocol.data_received(REQUEST)
    assert (await answered(connection)).startswith(b"HTTP/1.1 200 OK")
    assert connection.head_timers == []


async def test_a_head_in_pieces_is_served(connection: Connection) -> None:
    for byte in REQUEST:
        connection.protocol.data_received(bytes([byte]))
    assert (await answered(connection)).startswith(b"HTTP/1.1 200 OK")
    assert connection.head_timers == []


@pytest.mark.parametrize("piece", [b"X: y\r\n" * 100, b"a" * 1_000])
async def test_an_endless_head_is_refused(connection: Connection, piece: bytes) -> None:
    connection.protocol.data_received(b"GET /a HTTP/1.1\r\nHost: a\r\nLong: ")
    sent = 0
    while not connection.transport.closed and sent < 2 * MAX_HEAD_BYTES:
        connection.protocol.data_received(piece)
        sent += len(piece)
    assert connection.refusal == (431, "M_TOO_LARGE")
    assert sent <= MAX_HEAD_BYTES + len(piece)


async def test_a_long_body_is_no_head(connection: Connection) -> None:
    connection.protocol.data_received(b"PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(3 * MAX_HEAD_BYTES // 1_000):
        connection.protocol.data_received(b"3e8\r\n")
        connection.protocol.data_received(b"x" * 1_000 + b"\r\n")
    connection.protocol.data_received(b"0\r\n\r\n")
    assert (await answered(connection)).startswith(b"HTTP/1.1 200 OK")
    assert not connection.transport.closed


@pytest.mark.parametrize("start", [b"", REQUEST[:10]])
async def test_a_head_that_does_not_come_is_given_up(connection: Connection, start: bytes) -> None:
    if start:
        connection.protocol.data_received(start)
    (give_up,) = connection.head_timers
    give_up()
    assert connection.refusal == (408, "M_UNKNOWN")
    assert connection.transport.closed


async def test_the_second_head_has_a_deadline_too(connection: Connection) -> None:
    connection.protocol.data_received(REQUEST)
    await answered(connection)
    connection.protocol.data_received(REQUEST[:10])
    assert len(connection.head_timers) == 1
    connection.protocol.connection_lost(None)
    assert connection.head_timers == []


async def test_what_is_no_http_is_told_so_in_json(connection: Connection) -> None:
    connection.protocol.data_received(b"\x16\x03\x01\x02\x00")
    assert connection.refusal == (400, "M_UNKNOWN")
    assert connection.transport.closed
