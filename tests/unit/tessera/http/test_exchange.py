"""Requests and answers on one connection, as the bytes that go over it: framing, order, and who is told what."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from tessera.http.exchange import EXCHANGE, MAX_WAITING_BODY, REPLY
from tessera.http.server_protocol import MAX_PIPELINED, BoundedHttpProtocol

HEAD = b" HTTP/1.1\r\nHost: a\r\n\r\n"


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.ended = asyncio.Event()
        self._is_reading = True

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.writes.append(b"".join(list_of_data))

    def is_reading(self) -> bool:
        return self._is_reading

    def close(self) -> None:
        self.ended.set()

    def is_closing(self) -> bool:
        return self.ended.is_set()

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)


Connect = Callable[..., tuple[BoundedHttpProtocol, Transport]]


@pytest.fixture
async def connect() -> Connect:
    def connect(app: ASGIApp, **options: Any) -> tuple[BoundedHttpProtocol, Transport]:
        config = Config(app, lifespan="off", log_config=None, **options)
        protocol, transport = BoundedHttpProtocol(config, ServerState(), {}), Transport()
        protocol.connection_made(transport)
        return protocol, transport

    return connect


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def of_request(handler: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)

    return app


async def echo_path(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(scope["path"])(scope, receive, send)


async def test_an_answer_is_one_write(connect: Connect) -> None:
    protocol, transport = connect(echo_path)
    protocol.data_received(b"GET /a%20b" + HEAD)
    await settle()
    assert transport.writes == [b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\ncontent-type: application/json\r\n\r\n"/a b"']
    assert not transport.is_closing()


@pytest.mark.parametrize(("method", "body"), [(b"GET", b"{}"), (b"HEAD", b"")])
async def test_a_reply_is_one_call(connect: Connect, method: bytes, body: bytes) -> None:
    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        assert scope[REPLY](200, b"content-length: 2\r\n", b"{}")

    protocol, transport = connect(app)
    protocol.data_received(method + b" /" + HEAD)
    await settle()
    assert transport.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + body]


async def test_a_reply_goes_the_long_way_while_the_peer_takes_nothing(connect: Connect) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert not scope[REPLY](200, b"content-length: 2\r\n", b"{}")
        await JSONResponse({})(scope, receive, send)

    protocol, transport = connect(app)
    protocol.pause_writing()
    protocol.data_received(b"GET /" + HEAD)
    await settle()
    assert transport.writes == []
    protocol.resume_writing()
    await settle()
    assert transport.written.endswith(b"\r\n\r\n{}")


async def test_pipelined_requests_are_answered_in_order_one_after_the_other(connect: Connect) -> None:
    turns = {"/1": asyncio.Event(), "/2": asyncio.Event(), "/3": asyncio.Event()}
    begun: list[str] = []

    async def wait(request: Request) -> Response:
        begun.append(request.url.path)
        await turns[request.url.path].wait()
        return Response(request.url.path)

    protocol, transport = connect(of_request(wait))
    protocol.data_received(b"".join(b"GET /%d" % number + HEAD for number in (1, 2, 3)))
    for number in (3, 2, 1):
        turns[f"/{number}"].set()
        await settle()
        assert begun == (["/1"] if number > 1 else ["/1", "/2", "/3"])
    assert [write[-2:] for write in transport.writes] == [b"/1", b"/2", b"/3"]
    assert transport.is_reading()


async def test_too_many_pipelined_requests_cost_the_connection(connect: Connect) -> None:
    async def never(_request: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    protocol, transport = connect(of_request(never))
    protocol.data_received((b"GET /" + HEAD) * (MAX_PIPELINED + 1))
    assert not transport.is_closing()
    assert not transport.is_reading()
    protocol.data_received(b"GET /" + HEAD)
    assert transport.is_closing()


async def test_bodies_are_given_in_pieces_and_bounded_on_the_way(connect: Connect) -> None:
    may_read = asyncio.Event()
    pieces: list[bytes] = []

    async def read(request: Request) -> Response:
        await may_read.wait()
        async for piece in request.stream():
            pieces.append(piece)
        return Response(b"done")

    protocol, transport = connect(of_request(read))
    half = b"x" * MAX_WAITING_BODY
    protocol.data_received(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (2 * len(half)))
    protocol.data_received(half)
    assert transport.is_reading()
    protocol.data_received(half[:1])
    assert not transport.is_reading()
    may_read.set()
    await settle()
    assert transport.is_reading()
    protocol.data_received(half[1:])
    await settle()
    assert b"".join(pieces) == half * 2
    assert transport.written.endswith(b"done")


async def test_the_body_is_asked_for_when_it_is_wanted(connect: Connect) -> None:
    async def read(request: Request) -> Response:
        return Response(await request.body())

    protocol, transport = connect(of_request(read))
    protocol.data_received(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    await settle()
    assert transport.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    protocol.data_received(b"abc")
    await settle()
    assert transport.writes[1].endswith(b"abc")


@pytest.mark.parametrize(
    ("version", "framed"),
    [
        (b"1.1", b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        (b"1.0", b"connection: close\r\n\r\nabc"),
    ],
)
async def test_answers_without_a_length_are_framed(connect: Connect, version: bytes, framed: bytes) -> None:
    async def stream(_request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"ab"
            yield b"c"

        return StreamingResponse(pieces())

    protocol, transport = connect(of_request(stream))
    protocol.data_received(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
    await settle()
    assert transport.written.endswith(framed)
    assert transport.is_closing() == (version == b"1.0")


@pytest.mark.parametrize("header", [("x", "a\r\nb: c"), ("x y", "z"), ("x", "\0")])
async def test_a_header_that_would_break_the_head_is_not_sent(connect: Connect, header: tuple[str, str]) -> None:
    async def answer(_request: Request) -> Response:
        return Response(b"", headers=dict([header]))

    protocol, transport = connect(of_request(answer))
    protocol.data_received(b"GET /" + HEAD)
    await settle()
    assert transport.written.startswith(b"HTTP/1.1 500 ")
    assert transport.is_closing()


async def test_a_body_of_another_length_cuts_the_connection(connect: Connect) -> None:
    async def answer(_request: Request) -> Response:
        return Response(b"abc", headers={"content-length": "2"})

    protocol, transport = connect(of_request(answer))
    protocol.data_received(b"GET /" + HEAD)
    await settle()
    assert b"abc" not in transport.written
    assert transport.is_closing()


async def test_an_application_that_fails_is_a_plain_500(connect: Connect) -> None:
    async def fail(_request: Request) -> Response:
        raise RuntimeError("secret")

    protocol, transport = connect(of_request(fail))
    protocol.data_received(b"GET /" + HEAD)
    await settle()
    assert transport.written.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in transport.written


async def test_who_reads_when_the_client_goes_is_told(connect: Connect) -> None:
    told: list[str] = []

    async def read(request: Request) -> Response:
        try:
            await request.body()
        except ClientDisconnect:
            told.append("gone")
            raise
        raise AssertionError

    protocol, transport = connect(of_request(read))
    protocol.data_received(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab")
    await settle()
    protocol.connection_lost(None)
    await settle()
    assert told == ["gone"]
    assert transport.writes == []


@pytest.mark.parametrize("ends", [True, False])
async def test_who_only_waits_ends_with_the_client(connect: Connect, ends: bool) -> None:
    ended: list[str] = []

    async def park(request: Request) -> Response:
        request.scope[EXCHANGE].ends_with_client = ends
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("parked")
        raise AssertionError

    protocol, _ = connect(of_request(park))
    protocol.data_received(b"GET /" + HEAD)
    await settle()
    tasks = set(protocol._server_state.tasks)
    assert len(tasks) == 1
    protocol.connection_lost(None)
    await settle()
    assert ended == (["parked"] if ends else [])
    assert (protocol._server_state.tasks == set()) is ends
    for task in tasks:
        task.cancel()


async def test_a_connection_is_closed_when_nothing_comes(connect: Connect) -> None:
    protocol, transport = connect(echo_path, timeout_keep_alive=0)
    protocol.data_received(b"GET /" + HEAD)
    await settle()
    async with asyncio.timeout(5):
        await transport.ended.wait()


async def test_a_shutdown_finishes_what_was_begun(connect: Connect) -> None:
    turn = asyncio.Event()

    async def wait(_request: Request) -> Response:
        await turn.wait()
        return Response(b"done")

    protocol, transport = connect(of_request(wait))
    protocol.data_received(b"GET /" + HEAD)
    await settle()
    protocol.shutdown()
    assert not transport.is_closing()
    turn.set()
    await settle()
    assert b"connection: close\r\n" in transport.written
    assert transport.written.endswith(b"done")
    assert transport.is_closing()
    idle, idle_transport = connect(echo_path)
    idle.shutdown()
    assert idle_transport.is_closing()
