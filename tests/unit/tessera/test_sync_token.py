"""Sync tokens survive their own encoding, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.sync_token import InvalidSyncToken, Point, SyncToken, component_for, decode_token, encode_token

POSITIONS = st.integers(0, (1 << 40) - 1)
LONG = st.integers(0, (1 << 63) - 1)
SHORT = st.integers(0, (1 << 32) - 1)
TOKENS = st.builds(
    SyncToken,
    positions=st.dictionaries(st.integers(0, 4095), st.builds(Point, st.integers(0, 4095), POSITIONS), max_size=64),
    user=LONG,
    to_device=LONG,
    devices=LONG,
    instance=SHORT,
    typing=SHORT,
    presence=SHORT,
)


@given(TOKENS)
def test_a_token_decodes_to_itself(token: SyncToken) -> None:
    text = encode_token(token)
    assert decode_token(text) == token
    assert text.isascii()
    assert "=" not in text


@given(st.text(max_size=100))
def test_other_text_is_refused_or_decodes(text: str) -> None:
    for candidate in (text, "s1" + text):
        try:
            decode_token(candidate)
        except InvalidSyncToken:
            continue


@pytest.mark.parametrize("text", ["", "s1", "s2AAAA", "t12", "s1!!!!", "s1AAAA", "s72594_4483_1934"])
def test_bad_tokens(text: str) -> None:
    with pytest.raises(InvalidSyncToken):
        decode_token(text)


def test_a_cut_token_is_refused() -> None:
    text = encode_token(SyncToken({1: Point(1, 5)}, 3))
    with pytest.raises(InvalidSyncToken):
        decode_token(text[:-4])


def test_component_for_a_partition() -> None:
    text = encode_token(SyncToken({3: Point(1, 77)}, 3))
    assert component_for(text, 3) == 77
    assert component_for(text, 4) is None
