"""Page tokens. DESIGN section 4: a room has one order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.pagination_token import InvalidPageToken, encode_page_token, parse_page_token, point_before
from tessera.records import OrderKey

keys = st.builds(OrderKey, st.integers(0, 2**53), st.integers(-(2**29), 0))


@given(keys)
def test_a_token_comes_back_as_its_key(key: OrderKey) -> None:
    assert parse_page_token(encode_page_token(key)) == key


@given(keys, keys)
def test_the_point_before_an_event_lies_between_it_and_all_before_it(key: OrderKey, other: OrderKey) -> None:
    point = point_before(key)
    assert point < key
    if other < key:
        assert other <= point


@pytest.mark.parametrize("text", ["", "t", "t-1", "t1-", "s1AAAA", "t1--2", "t１", "t" + "9" * 30, "t1\n"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidPageToken):
        parse_page_token(text)
