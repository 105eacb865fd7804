"""multipart/mixed as servers exchange media in it, written and read in pieces.

Spec: S-S API §Content Repository; RFC 2046 §5.1.
"""

import re
from collections.abc import AsyncIterator, Mapping

MAX_HEADERS = 8 << 10
MAX_BOUNDARY = 70
_BOUNDARY = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))""", re.IGNORECASE)


class BadMultipart(Exception):
    """The body is not what its Content-Type says."""


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names.

    Raises:
        BadMultipart
    """
    match = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/mixed") or match is None:
        raise BadMultipart("no multipart/mixed")
    return (match[1] or match[2]).encode("latin-1", "replace")


def part_head(boundary: str, headers: Mapping[str, str]) -> bytes:
    """What comes before the content of a part, the first one or another."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"\r\n--{boundary}\r\n{lines}\r\n".encode()


def multipart_end(boundary: str) -> bytes:
    """What comes after the last part."""
    return f"\r\n--{boundary}--\r\n".encode()


class MultipartReader:
    """Reads parts one after another; each must be read to its end before the next."""

    def __init__(self, boundary: bytes, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # so that the first delimiter is one like the others
        self._ended = False

    async def next_headers(self) -> dict[str, str]:
        """The headers of the next part, names in lower case; before the first one, after the one before is read.

        Raises:
            BadMultipart: there is no other part.
        """
        if not self._buffer.startswith(self._delimiter):
            async for _ in self.content():  # the preamble
                pass
        self._buffer = self._buffer[len(self._delimiter) :]
        while b"\r\n" not in self._buffer and len(self._buffer) < MAX_HEADERS:
            await self._more()
        line, _, rest = self._buffer.partition(b"\r\n")
        if line.strip():
            raise BadMultipart("a part is missing")
        self._buffer = b"\r\n" + rest
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > MAX_HEADERS:
                raise BadMultipart("the headers of a part are too long")
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        # An empty content is followed by its delimiter at once, whose line break was that of the headers.
        if self._buffer.startswith(self._delimiter[2:]):
            self._buffer = b"\r\n" + self._buffer
        headers: dict[str, str] = {}
        for header in head.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = header.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        return headers

    async def content(self) -> AsyncIterator[bytes]:
        """The content of the part in pieces.

        Raises:
            BadMultipart: it breaks off.
        """
        keep = len(self._delimiter) - 1
        while True:
            place = self._buffer.find(self._delimiter)
            if place >= 0:
                piece, self._buffer = self._buffer[:place], self._buffer[place:]
                if piece:
                    yield piece
                return
            if len(self._buffer) > keep:
                piece, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
                yield piece
            await self._more()

    async def _more(self) -> None:
        chunk = None if self._ended else await anext(self._chunks, None)
        if chunk is None:
            self._ended = True
            raise BadMultipart("the body ends in a part")
        self._buffer += chunk
