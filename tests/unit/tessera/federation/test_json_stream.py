"""Taking a large JSON object apart while it arrives."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.federation.json_stream import ObjectSplitter, Piece, StreamBroken

LIMIT = 10_000
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def split(text: bytes, size: int, limit: int = LIMIT) -> list[Piece]:
    splitter = ObjectSplitter(frozenset(("state", "auth_chain")), limit)
    pieces = [p for start in range(0, len(text), size) for p in splitter.feed(text[start : start + size])]
    splitter.close()
    return pieces


@settings(max_examples=150, deadline=None)
@given(
    st.lists(values, max_size=5),
    values,
    st.dictionaries(st.text(max_size=5).map(lambda s: "x" + s), values, max_size=3),
    st.integers(1, 40),
    st.booleans(),
)
def test_pieces_are_what_a_parser_finds(
    state: list[Any], event: Any, others: dict[str, Any], size: int, is_spaced: bool
) -> None:
    whole = {"state": state, "event": event, **others}
    text = orjson.dumps(whole, option=orjson.OPT_INDENT_2 if is_spaced else 0)
    pieces = split(text, size)
    assert [orjson.loads(p.text) for p in pieces if p.key == "state"] == state
    assert [orjson.loads(p.text) for p in pieces if p.key == "event"] == [event]
    assert len(pieces) == len(state) + 1 + len(others)


@pytest.mark.parametrize(
    "text",
    [b"[]", b"{", b'{"a"', b'{"a":1', b'{"a" 1}', b'{"state":[1 2]}', b'{"state":[1,2}', b'{"a":1}x', b"{,}", b"{a:1}"],
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(StreamBroken):
        split(text, 3)


def test_no_piece_is_held_beyond_the_limit() -> None:
    text = b'{"state":[{"body":"' + b"x" * 5_000 + b'"}]}'
    assert len(split(text, 100, 6_000)) == 1
    for limit in (100, 4_000):
        with pytest.raises(StreamBroken):
            split(text, 100, limit)
    with pytest.raises(StreamBroken):
        split(b'{"' + b"k" * 5_000 + b'":1}', 100)
