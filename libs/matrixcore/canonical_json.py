"""Canonical JSON, and the parsing of JSON that comes from outside.

orjson does the work in both directions: it writes UTF-8 without white space and sorts keys by
their UTF-8 bytes, which is the order of code points that the specification asks for. It is
more liberal than canonical JSON with numbers, so those are checked apart.

Spec: Appendices §Canonical JSON.
"""

import json
import re
from typing import Any

import canonicaljson
import orjson

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 100

_EMPTY = (None,)  # an empty object or array is a level of nesting as well
_CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER

# What could be a number that orjson does not keep exactly; strings may match too, which costs only time.
_UNUSUAL_NUMBER = re.compile(rb"[:,\[]\s*-?(?:[0-9]{16}|[0-9]+[.eE])")


class InvalidJson(ValueError):
    """What came in cannot be used; `NotJson` and `BadJson` tell why."""


class NotJson(InvalidJson):
    """The bytes are no JSON text in UTF-8 (errcode M_NOT_JSON)."""


class BadJson(InvalidJson):
    """JSON that breaks a limit or has the wrong shape (errcode M_BAD_JSON)."""


def encode_canonical_json(value: Any, *, strict: bool = True) -> bytes:
    """The canonical bytes of a value made of dicts, lists, strings, integers, booleans and None.

    Args:
        value: has passed `check_canonical` (or was parsed by `parse_json_object`); the fast path
            does not look for floats again.
        strict: False for events of room versions 1 to 5, which may hold any number.

    Raises:
        BadJson: an integer out of range (strict), a lone surrogate, or a type that JSON lacks.
    """
    if not strict:
        return _encode_lenient(value)
    try:
        return orjson.dumps(value, option=_CANONICAL)
    except TypeError as error:
        raise BadJson(str(error)) from None


def _encode_lenient(value: Any) -> bytes:
    """Like canonical JSON, but with the numbers that old room versions let in.

    Other servers write such numbers as Python's json does, and hashes depend on it; orjson
    writes large floats differently, hence the second encoder.
    """
    try:
        if not _has_unusual_number(value):
            return orjson.dumps(value, option=_CANONICAL)
        return canonicaljson.encode_canonical_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadJson(str(error)) from None


def _has_unusual_number(value: Any) -> bool:
    stack = [value]
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind is dict:
            stack.extend(node.values())
        elif kind is list or kind is tuple:
            stack.extend(node)
        elif kind is float or (kind is int and not -MAX_INTEGER <= node <= MAX_INTEGER):
            return True
    return False


def check_canonical(value: Any, *, max_depth: int = MAX_DEPTH, allow_floats: bool = False) -> None:
    """Refuse what canonical JSON cannot hold: floats, integers beyond ±(2**53 - 1), deep nesting.

    Args:
        value: as orjson parses it. Its outermost object or array is level 1.
        max_depth: levels of nesting that are allowed.
        allow_floats: for JSON that is no event (account data: the `order` of a tag).

    Raises:
        BadJson
    """
    level: list[Any] = [value]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for node in level:
            kind = type(node)
            if kind is str or kind is bool or node is None:
                continue
            if kind is dict:
                below.extend(node.values() or _EMPTY)
            elif kind is list or kind is tuple:
                below.extend(node or _EMPTY)
            elif kind is int:
                if not -MAX_INTEGER <= node <= MAX_INTEGER:
                    raise BadJson("integers must lie within ±(2**53 - 1)")
            elif kind is float:
                if not allow_floats:
                    raise BadJson("numbers must be integers")
            else:
                raise BadJson(f"a {kind.__name__} is not JSON")
        if not below:
            return
        level = below
    raise BadJson(f"nested more than {max_depth} levels deep")


def parse_json_object(body: bytes, *, max_depth: int = MAX_DEPTH, allow_floats: bool = False) -> dict[str, Any]:
    """Parse a body that must be a JSON object, and refuse what would do harm later.

    Refused are: floats (unless allowed) and large integers, deep nesting, duplicate keys, lone
    surrogates, and NUL in any string (PostgreSQL cannot store it).

    Raises:
        NotJson: no JSON at all, or not UTF-8.
        BadJson: no object, or one of the above.
    """
    value = parse_json(body, max_depth=max_depth, allow_floats=allow_floats)
    if type(value) is not dict:
        raise BadJson("the body must be a JSON object")
    return value


def parse_json(body: bytes, *, max_depth: int = MAX_DEPTH, allow_floats: bool = False) -> Any:
    """`parse_json_object` for any JSON value."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJson(error.msg) from None
    check_canonical(value, max_depth=max_depth, allow_floats=allow_floats)
    if b"\\u0000" in body and _has_nul(value):
        raise BadJson("strings must not contain NUL")
    _check_unique_keys(body, value)
    return value


def parse_exact_json(body: bytes) -> Any:
    """Parse JSON that may hold any number, as events of room versions 1 to 5 do.

    Integers keep all their digits, where orjson would make floats of the largest. Nothing else
    is checked.

    Raises:
        NotJson
    """
    try:
        value = orjson.loads(body)  # also proves that it is JSON in UTF-8 without lone surrogates
        return json.loads(body) if _UNUSUAL_NUMBER.search(body) else value
    except orjson.JSONDecodeError as error:
        raise NotJson(error.msg) from None
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None


def recode_canonical_json(body: bytes, value: Any) -> bytes:
    """The canonical bytes of a JSON text and of what `parse_exact_json` has made of it; any number may stand there.

    Raises:
        BadJson: a lone surrogate.
    """
    return encode_canonical_json(value, strict=_UNUSUAL_NUMBER.search(body) is None)


def _has_nul(value: Any) -> bool:
    """Whether any string has a NUL. The escape in the bytes alone proves nothing: `\\\\u0000` is a backslash."""
    stack = [value]
    while stack:
        node = stack.pop()
        if type(node) is str:
            if "\0" in node:
                return True
        elif type(node) is dict:
            stack.extend(node)
            stack.extend(node.values())
        elif type(node) is list:
            stack.extend(node)
    return False


def _check_unique_keys(body: bytes, value: Any) -> None:
    """Refuse an object with the same key twice, of which orjson keeps only the last.

    Each member has one colon outside strings, and strings keep theirs. So, when no colon is
    escaped in the body, a dropped member shows in the number of colons of the re-encoded value.
    Only bodies with an escape that may be a colon are parsed again, slowly.
    """
    if b"\\u003a" not in body and b"\\u003A" not in body:
        if body.count(b":") != orjson.dumps(value).count(b":"):
            raise BadJson("duplicate keys")
        return
    json.loads(body, object_pairs_hook=_object_of_unique_keys)


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadJson("duplicate keys")
    return made
