"""A large JSON object taken apart while it arrives: the items of its long arrays one by one, never the whole.

Only borders are looked for here; whoever gets a piece parses it. What follows a border wrongly shows there.
"""

import re
from typing import NamedTuple

# Up to the next bracket that stands in no string.
_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[{}\[\]]', re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SCALAR = re.compile(rb"[^\s,\]}\[{:\"]+")
_SPACE = re.compile(rb"\s*")
MAX_KEY_BYTES = 256


class StreamBroken(ValueError):
    """This is no JSON object, or has a part that is too long."""


class Piece(NamedTuple):
    """An item of one of the arrays, or the whole value of another key.

    Attributes:
        key: of the object.
        text: JSON.
    """

    key: str
    text: bytes


class _Incomplete(Exception):
    """More is needed."""


class ObjectSplitter:
    """Takes a JSON object in chunks and gives its pieces.

    Args:
        arrays: keys whose values are given item by item, if they are arrays.
        max_piece_bytes: of each piece; no more than that and a chunk is ever held.
    """

    def __init__(self, arrays: frozenset[str], max_piece_bytes: int) -> None:
        self._arrays = arrays
        self._limit = max_piece_bytes
        self._data = b""
        self._at = 0  # the beginning of what is looked at
        self._scanned = 0  # up to where the value that begins there has been looked through
        self._depth = 0
        self._key = ""
        self._expects = "object"

    def feed(self, chunk: bytes) -> list[Piece]:
        """The pieces that are complete now.

        Raises:
            StreamBroken
        """
        self._data = self._data[self._at :] + chunk
        self._scanned -= self._at
        self._at = 0
        pieces: list[Piece] = []
        try:
            while True:
                self._step(pieces)
        except _Incomplete:
            if len(self._data) - self._at > self._limit:
                raise StreamBroken(f"a part is longer than {self._limit} bytes") from None
        return pieces

    def close(self) -> None:
        """The end has come.

        Raises:
            StreamBroken: too early.
        """
        if self._expects != "nothing":
            raise StreamBroken("it ends too early")

    def _step(self, pieces: list[Piece]) -> None:
        match self._expects:
            case "object":
                self._take(b"{")
                self._expects = "first key"
            case "first key" | "next key":
                self._take_key_or_end(is_first=self._expects == "first key")
            case "value":
                if self._key in self._arrays and self._peek() == b"[":
                    self._take(b"[")
                    self._expects = "first item"
                else:
                    pieces.append(Piece(self._key, self._take_value()))
                    self._expects = "next key"
            case "first item" | "next item":
                self._take_item_or_end(is_first=self._expects == "first item")
            case "item":
                pieces.append(Piece(self._key, self._take_value()))
                self._expects = "next item"
            case _:
                if self._peek():
                    raise StreamBroken("more follows the object")

    def _take_key_or_end(self, *, is_first: bool) -> None:
        start, mark = self._at, self._peek()
        if mark == b"}":
            self._take(b"}")
            self._expects = "nothing"
            return
        if not is_first:
            self._take(b",")
        blank = _SPACE.match(self._data, self._at)
        assert blank is not None
        found = _STRING.match(self._data, blank.end())
        colon = None if found is None else _SPACE.match(self._data, found.end())
        if found is None or colon is None or colon.end() >= len(self._data):
            if self._data[blank.end() : blank.end() + 1] not in (b"", b'"') or len(self._data) - start > MAX_KEY_BYTES:
                raise StreamBroken("a key was expected")
            self._at = start
            raise _Incomplete
        self._at = colon.end()
        self._take(b":")
        self._key = found[0][1:-1].decode(errors="replace")
        self._begin_value("value")

    def _take_item_or_end(self, *, is_first: bool) -> None:
        if self._peek() == b"]":
            self._take(b"]")
            self._expects = "next key"
            return
        if not is_first:
            self._take(b",")
        self._begin_value("item")

    def _begin_value(self, expects: str) -> None:
        self._expects, self._scanned, self._depth = expects, 0, 0

    def _take_value(self) -> bytes:
        first = self._peek()
        if first == b'"':
            return self._take_matching(_STRING)
        if first not in (b"{", b"["):
            return self._take_matching(_SCALAR, is_open=True)
        at, depth = max(self._scanned, self._at), self._depth
        while True:
            found = _BRACKET.match(self._data, at)
            if found is None:
                self._scanned, self._depth = at, depth
                raise _Incomplete
            at = found.end()
            depth += 1 if self._data[at - 1] in b"{[" else -1
            if depth <= 0:
                break
        return self._end_value(at)

    def _take_matching(self, form: re.Pattern[bytes], *, is_open: bool = False) -> bytes:
        """A value without brackets; one that is open may go on in the next chunk."""
        found = form.match(self._data, self._at)
        if found is None and is_open:
            raise StreamBroken("a value was expected")
        if found is None or (is_open and found.end() >= len(self._data)):
            raise _Incomplete
        return self._end_value(found.end())

    def _end_value(self, end: int) -> bytes:
        if end - self._at > self._limit:
            raise StreamBroken(f"a part is longer than {self._limit} bytes")
        value, self._at = self._data[self._at : end], end
        return value

    def _peek(self) -> bytes:
        """The next byte that is no blank, which is where we are then."""
        found = _SPACE.match(self._data, self._at)
        assert found is not None
        self._at = found.end()
        if self._at >= len(self._data):
            raise _Incomplete
        return self._data[self._at : self._at + 1]

    def _take(self, expected: bytes) -> None:
        if self._peek() != expected:
            raise StreamBroken(f"{expected.decode()} was expected")
        self._at += 1
