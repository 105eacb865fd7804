"""Canonical JSON and the refusal of bad bodies. Spec: Appendices §Canonical JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixcore.canonical_json import (
    MAX_INTEGER,
    BadJson,
    NotJson,
    check_canonical,
    encode_canonical_json,
    parse_exact_json,
    parse_json_object,
)

text = st.text(st.characters(exclude_categories=("Cs",)))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=15,
)


@pytest.mark.parametrize(
    ("source", "canonical"),
    [
        ("{}", "{}"),
        ('{"one": 1, "two": "Two"}', '{"one":1,"two":"Two"}'),
        ('{"b": "2", "a": "1"}', '{"a":"1","b":"2"}'),
        (
            '{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe",'
            ' "three_pids": [{"medium": "email", "address": "john.doe@example.org"},'
            ' {"medium": "msisdn", "address": "123456789"}]}}}',
            '{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":'
            '[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},'
            '"success":true}}',
        ),
        ('{"a": "日本語"}', '{"a":"日本語"}'),
        ('{"本": 2, "日": 1}', '{"日":1,"本":2}'),
        ('{"a": "\\u65E5"}', '{"a":"日"}'),
        ('{"a": null}', '{"a":null}'),
        ('{"a": -0, "b": 10000000000}', '{"a":0,"b":10000000000}'),
    ],
)
def test_examples_of_the_specification(source: str, canonical: str) -> None:
    assert encode_canonical_json(parse_json_object(source.encode())) == canonical.encode()


def test_keys_are_sorted_by_code_point_and_escapes_are_the_shortest() -> None:
    assert encode_canonical_json({"\U0001f600": 1, "\uffff": 2, "z": 3}) == '{"z":3,"\uffff":2,"\U0001f600":1}'.encode()
    assert encode_canonical_json('\x00\x08\t\n\x0c\r\x1f"\\/\x7f') == b'"\\u0000\\b\\t\\n\\f\\r\\u001f\\"\\\\/\x7f"'


@given(values)
def test_canonical_json_is_what_the_reference_code_makes_and_comes_back(value: Any) -> None:
    canonical = encode_canonical_json(value)
    reference = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    assert canonical == reference == encode_canonical_json(value, strict=False)
    assert json.loads(canonical) == value
    assert parse_exact_json(canonical) == value


@pytest.mark.parametrize("value", [2**53, -(2**53), {"a": [2**70]}, "\ud800", {1: 2}, object()])
def test_what_canonical_json_cannot_hold(value: Any) -> None:
    with pytest.raises(BadJson):
        encode_canonical_json(value)


def test_old_rooms_hold_any_number_and_write_it_as_others_do() -> None:
    body = b'{"big":1180591620717411303424,"exp":1e+25,"float":1.5,"neg":-0.0}'
    assert encode_canonical_json(parse_exact_json(body), strict=False) == body
    with pytest.raises(BadJson):
        encode_canonical_json(float("nan"), strict=False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":01}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_not_json(body: bytes) -> None:
    with pytest.raises(NotJson):
        parse_json_object(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"1",
        b'{"a":1.5}',
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":[{"b":9007199254740992}]}',
        b'{"a":-9007199254740992}',
        b'{"a":123456789012345678901234567890}',
        b'{"a":"\\u0000"}',
        b'{"a\\u0000":1}',
        b'{"a":1,"a":1}',
        b'{"a":{"b":":","b":2}}',
        b'{"a":1,"\\u0061":"::"}',
        b'{"a":"\\u003a","b":1,"b":2}',
        b'{"a:":1,"a\\u003A":2}',
        b'{"a":"\\u003c","a":":"}',
    ],
)
def test_bad_json(body: bytes) -> None:
    with pytest.raises(BadJson):
        parse_json_object(body)


def test_what_only_looks_bad() -> None:
    body = rb'{"a":"1.5, \\u0000 : \\u003a","b":{"a":9007199254740991},"c":[{"a":1},{"a":1}], "d" : "\u003a"}'
    assert parse_json_object(body) == {
        "a": "1.5, \\u0000 : \\u003a",
        "b": {"a": MAX_INTEGER},
        "c": [{"a": 1}, {"a": 1}],
        "d": ":",
    }


def test_account_data_may_have_floats() -> None:
    assert parse_json_object(b'{"order":0.5}', allow_floats=True) == {"order": 0.5}


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_nesting(opening: bytes) -> None:
    closing = b"}" if opening.startswith(b"{") else b"]"

    def nested(depth: int) -> bytes:
        inner = depth - 1
        return b'{"a":' + opening * inner + b"1" + closing * inner + b"}"

    assert parse_json_object(nested(100))
    with pytest.raises(BadJson):
        parse_json_object(nested(101))
    with pytest.raises((BadJson, NotJson)):
        parse_json_object(nested(100_000))


def test_empty_containers_count_as_levels() -> None:
    check_canonical([[]], max_depth=2)
    for value in ([[]], [{}]):
        with pytest.raises(BadJson):
            check_canonical(value, max_depth=1)


@given(st.dictionaries(text.map(lambda key: key.replace("\0", "")), values, max_size=5), st.booleans())
def test_every_canonical_object_without_nul_is_let_in(value: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode()
    if "\0" in str(value) or "\\x00" in str(value):
        return
    assert parse_json_object(body) == value
