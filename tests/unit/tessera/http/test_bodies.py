import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from tessera.http.bodies import read_body, read_json_object, stream_body
from tessera.http.errors import BadJson, InvalidParam, MatrixError, NotJson, TooLarge


def request_of(*chunks: bytes, headers: Sequence[tuple[bytes, bytes]] = (), then: str = "end") -> Request:
    """A request whose body comes in chunks and then ends, goes away ("gone") or never goes on ("stall")."""
    messages = iter(chunks)
    left = len(chunks)

    async def receive() -> Any:
        nonlocal left
        chunk = next(messages, None)
        left -= 1
        if chunk is not None:
            return {"type": "http.request", "body": chunk, "more_body": left > 0 or then != "end"}
        if then == "stall":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"} if then == "gone" else {"type": "http.request", "body": b""}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": list(headers)}, receive)


async def test_chunks_are_put_together() -> None:
    assert await read_body(request_of(b"a", b"b", b"c")) == b"abc"
    assert await read_body(request_of()) == b""


async def test_a_declared_length_is_refused_before_reading() -> None:
    request = request_of(headers=[(b"content-length", b"1001")], then="stall")
    with pytest.raises(TooLarge):
        await read_body(request, 1000)


async def test_what_is_longer_than_declared_is_counted() -> None:
    for chunks in ([b"x" * 600, b"x" * 600], [b"x" * 1001]):
        with pytest.raises(TooLarge):
            await read_body(request_of(*chunks, headers=[(b"content-length", b"10")]), 1000)


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"\xb2", b"9" * 30, b""])
async def test_a_length_that_is_no_number(length: bytes) -> None:
    with pytest.raises(InvalidParam):
        await read_body(request_of(b"{}", headers=[(b"content-length", length)]))


async def test_a_stalled_body_is_given_up_and_its_connection_closed() -> None:
    with pytest.raises(MatrixError) as caught:
        await read_body(request_of(b"{", then="stall"), deadline_seconds=0.01)
    assert caught.value.status == 408
    assert caught.value.headers["Connection"] == "close"


async def test_a_client_that_went_away() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(request_of(b"{", then="gone"))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", NotJson),
        (b"{", NotJson),
        (b"{'a': 1}", NotJson),
        (b'{"a": NaN}', NotJson),
        (b'{"a": "\xff"}', NotJson),
        (b'{"a": "\\ud800"}', NotJson),
        (b'{"a": "\\udc00\\ud800"}', NotJson),
        (b'{"a": "\xed\xa0\x80"}', NotJson),
        (b'{"a": "x\\u0000"}', BadJson),
        (b'{"\\u0000": 1}', BadJson),
        (b'{"a": 1.0}', BadJson),
        (b'{"a": 1e3}', BadJson),
        (b'{"a": 9007199254740992}', BadJson),
        (b'{"a": 1, "a": 1}', BadJson),
        (b'{"a": {"\\u003a": 1, ":": 1}}', BadJson),
        (b"[]", BadJson),
        (b'"text"', BadJson),
        (b'{"a":' * 101 + b"1" + b"}" * 101, BadJson),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", NotJson),
    ],
)
async def test_bodies_that_do_harm_later_are_refused(body: bytes, error: type[MatrixError]) -> None:
    with pytest.raises(error):
        await read_json_object(request_of(body))


async def test_floats_and_empty_bodies_where_they_are_allowed() -> None:
    assert await read_json_object(request_of(b'{"order": 0.5}'), allow_floats=True) == {"order": 0.5}
    assert await read_json_object(request_of(b""), allow_empty=True) == {}
    with pytest.raises(NotJson):
        await read_json_object(request_of(b" "), allow_empty=True)


async def collect(stream: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in stream]


async def test_uploads_stream_and_must_keep_moving() -> None:
    assert await collect(stream_body(request_of(b"ab", b"", b"c"))) == [b"ab", b"c"]
    for waits in ({"idle_seconds": 0.01}, {"total_seconds": 0.01}):
        with pytest.raises(MatrixError) as caught:
            await collect(stream_body(request_of(b"ab", then="stall"), **waits))
        assert caught.value.status == 408
