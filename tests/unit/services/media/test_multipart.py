"""multipart/mixed in pieces: what is written is read again, however it is cut."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.media.multipart import BadMultipart, MultipartReader, boundary_of, multipart_end, part_head
from services.media.remote import filename_of

BOUNDARY = "gc0p4Jq0M2Yt08jU534c0p"


async def _cut(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def _body(*parts: tuple[dict[str, str], bytes]) -> bytes:
    heads = b"".join(part_head(BOUNDARY, headers) + content for headers, content in parts)
    return heads + multipart_end(BOUNDARY)


async def _read(reader: MultipartReader) -> tuple[dict[str, str], bytes]:
    headers = await reader.next_headers()
    return headers, b"".join([piece async for piece in reader.content()])


@given(
    content=st.binary(max_size=200) | st.just(b"\r\n--" + BOUNDARY.encode()[:-1]) | st.just(b"\r\n--\r\n"),
    size=st.integers(1, 50),
)
async def test_what_is_written_is_read_again_however_it_is_cut(content: bytes, size: int) -> None:
    body = _body(({"Content-Type": "application/json"}, b"{}"), ({"Content-Type": "image/png"}, content))
    reader = MultipartReader(BOUNDARY.encode(), _cut(body, size))
    assert await _read(reader) == ({"content-type": "application/json"}, b"{}")
    assert await _read(reader) == ({"content-type": "image/png"}, content)
    with pytest.raises(BadMultipart):
        await reader.next_headers()


async def test_a_preamble_and_parts_without_content_or_headers_are_understood() -> None:
    body = (
        f"hello\r\n--{BOUNDARY}\r\nLocation: https://cdn.example/x\r\n\r\n\r\n--{BOUNDARY}\r\n\r\nraw\r\n--{BOUNDARY}--"
    )
    reader = MultipartReader(BOUNDARY.encode(), _cut(body.encode(), 7))
    assert await _read(reader) == ({"location": "https://cdn.example/x"}, b"")
    assert await _read(reader) == ({}, b"raw")


@pytest.mark.parametrize("body", [b"", b"no parts", part_head(BOUNDARY, {}) + b"cut", b"\r\n--" + BOUNDARY.encode()])
async def test_what_breaks_off_is_told(body: bytes) -> None:
    with pytest.raises(BadMultipart):
        await _read(MultipartReader(BOUNDARY.encode(), _cut(body, 10)))


async def test_headers_without_end_are_not_kept() -> None:
    body = f"--{BOUNDARY}\r\n".encode() + b"x: " + b"y" * 100_000
    with pytest.raises(BadMultipart):
        await _read(MultipartReader(BOUNDARY.encode(), _cut(body, 1000)))


def test_boundaries_are_read_from_the_content_type() -> None:
    assert boundary_of("multipart/mixed; boundary=abc") == b"abc"
    assert boundary_of('Multipart/Mixed; Boundary="a b"; x=y') == b"a b"
    for wrong in ("multipart/mixed", "text/plain; boundary=abc", ""):
        with pytest.raises(BadMultipart):
            boundary_of(wrong)


def test_file_names_are_read_from_the_disposition() -> None:
    assert filename_of('inline; filename="a b.png"') == "a b.png"
    assert filename_of("attachment; filename*=utf-8''%C3%A4.png") == "ä.png"
    assert filename_of("inline") is None
    assert filename_of(None) is None
