"""Reads requests, strictly: whatever is malformed or too much is a 400.

Spec: MSC4186 §Request Body, Appendix.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, RoomId, UserId, parse_room_id
from services.sync.sliding import request as shapes
from services.sync.sliding.request import (
    Extensions,
    Form,
    Json,
    ListRule,
    RoomScope,
    RoomWish,
    SlidingRequest,
    ToDeviceWish,
)
from services.sync.sliding.required_state import MEMBER, Element, RequiredState, from_include
from services.sync.sliding.room_filters import EVERYTHING, RoomFilter
from services.sync.sync_request import PRESENCE_STATES
from tessera.http.errors import BadJson, InvalidParam, MissingParam

_ME, _LAZY, _ANY = "$ME", "$LAZY", "*"
_TO_DEVICE_TOKEN = re.compile(r"d([0-9]{1,18})")
_MAX_INDEX = 1 << 53


def parse_request(
    form: Form, user_id: UserId, device_id: str, query: Mapping[str, str], body: Json, raw: bytes = b""
) -> SlidingRequest:
    """The request of a device.

    Args:
        raw: the body as it came.

    Raises:
        BadJson, InvalidParam, MissingParam
    """
    # The accepted form has everything in the body, for the sake of CORS.
    outside: Mapping[str, Any] = query if form is Form.EXPERIMENTAL else body
    return SlidingRequest(
        user_id,
        device_id,
        form,
        raw,
        pos=_text(outside, "pos", shapes.MAX_BODY_BYTES),
        conn_id=_text(body, "conn_id"),
        txn_id=_text(body, "txn_id") or None,
        timeout_ms=_timeout(outside.get("timeout"), is_text=form is Form.EXPERIMENTAL),
        set_presence=_presence(outside.get("set_presence")),
        lists=_lists(form, user_id, body),
        subscriptions=_subscriptions(form, user_id, body),
        extensions=_extensions(body),
    )


def with_query(request: SlidingRequest, query: Mapping[str, str]) -> SlidingRequest:
    """A request of the experimental form with the same body and another query. Raises InvalidParam."""
    return replace(
        request,
        pos=_text(query, "pos", shapes.MAX_BODY_BYTES),
        timeout_ms=_timeout(query.get("timeout"), is_text=True),
        set_presence=_presence(query.get("set_presence")),
    )


def format_to_device_token(position: int) -> str:
    """next_batch of the to-device extension."""
    return f"d{position}"


def _lists(form: Form, user_id: UserId, body: Json) -> dict[str, ListRule]:
    lists = _object(body, "lists")
    if len(lists) > shapes.MAX_LISTS:
        raise InvalidParam(f"There may be {shapes.MAX_LISTS} lists at most")
    found: dict[str, ListRule] = {}
    for name, value in lists.items():
        if not name or len(name) > shapes.MAX_NAME_LENGTH:
            raise InvalidParam("lists: names have 1 to 255 characters")
        if not isinstance(value, dict):
            raise BadJson("lists: each must be an object")
        ranges = _ranges(value) if form is Form.EXPERIMENTAL else _range(value)
        found[name] = ListRule(_wish(form, user_id, value), ranges, _filter(form, value))
    return found


def _subscriptions(form: Form, user_id: UserId, body: Json) -> dict[RoomId, RoomWish]:
    subscriptions = _object(body, "room_subscriptions")
    if len(subscriptions) > shapes.MAX_SUBSCRIPTIONS:
        raise InvalidParam(f"There may be {shapes.MAX_SUBSCRIPTIONS} room subscriptions at most")
    found: dict[RoomId, RoomWish] = {}
    for room_id, value in subscriptions.items():
        if not isinstance(value, dict):
            raise BadJson("room_subscriptions: each must be an object")
        wish = _wish(form, user_id, value)
        try:
            found[parse_room_id(room_id)] = wish
        except InvalidIdentifier:
            continue  # a room that does not exist is ignored
    return found


def _wish(form: Form, user_id: UserId, value: Json) -> RoomWish:
    limit = value.get("timeline_limit", 0 if form is Form.EXPERIMENTAL else None)
    if limit is None:
        raise MissingParam("timeline_limit is needed")
    if not _is_count(limit):
        raise InvalidParam("timeline_limit must be a number of events")
    state = _pairs(user_id, value) if form is Form.EXPERIMENTAL else _required_state(value)
    return RoomWish(min(limit, shapes.MAX_TIMELINE_LIMIT), state)


def _pairs(user_id: UserId, value: Json) -> RequiredState:
    """required_state of the experimental form: pairs of type and state key."""
    elements: list[Element] = []
    is_lazy = False
    for pair in _bounded(value, "required_state", shapes.MAX_ELEMENTS):
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_name(one) for one in pair):
            raise BadJson("required_state must be pairs of an event type and a state key")
        event_type, state_key = pair
        if event_type == MEMBER and state_key == _LAZY:
            is_lazy = True
            continue
        state_key = user_id if state_key == _ME else state_key
        elements.append(Element(None if event_type == _ANY else event_type, None if state_key == _ANY else state_key))
    # Who asks for all members gets them, lazily or not.
    if is_lazy and Element(MEMBER, None) in elements:
        return from_include(elements)
    return from_include(elements, lazy_members=is_lazy)


def _required_state(value: Json) -> RequiredState:
    if "required_state" not in value:
        raise MissingParam("required_state is needed")
    wanted = _object(value, "required_state")
    lazy = wanted.get("lazy_members", False)
    if not isinstance(lazy, bool):
        raise BadJson("lazy_members must be true or false")
    return from_include(_elements(wanted, "include"), _elements(wanted, "exclude"), lazy_members=lazy)


def _elements(wanted: Json, key: str) -> list[Element]:
    elements = []
    for one in _bounded(wanted, key, shapes.MAX_ELEMENTS):
        if not isinstance(one, dict) or not all(
            one.get(name) is None or _is_name(one[name]) for name in Element._fields
        ):
            raise BadJson(f"required_state: {key} must be a list of objects with type and state_key")
        elements.append(Element(one.get("type"), one.get("state_key")))
    return elements


def _ranges(value: Json) -> tuple[tuple[int, int], ...] | None:
    if value.get("ranges") is None:
        return None
    return tuple(_pair_of_indices(one) for one in _bounded(value, "ranges", shapes.MAX_RANGES))


def _range(value: Json) -> tuple[tuple[int, int], ...] | None:
    return None if value.get("range") is None else (_pair_of_indices(value["range"]),)


def _pair_of_indices(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_count(one) for one in value):
        raise InvalidParam("A range must be two indices")
    if value[0] > value[1]:
        raise InvalidParam("A range must not end before it begins")
    return value[0], value[1]


def _filter(form: Form, value: Json) -> RoomFilter:
    filters = _object(value, "filters")
    if not filters:
        return EVERYTHING
    spaces = _names(filters, "spaces")
    return RoomFilter(
        is_dm=_flag(filters, "is_dm"),
        is_encrypted=_flag(filters, "is_encrypted"),
        is_invite=_flag(filters, "is_invite" if form is Form.EXPERIMENTAL else "is_invited"),
        spaces=None if spaces is None else frozenset(map(RoomId, spaces)),
        room_types=_room_types(filters, "room_types"),
        not_room_types=_room_types(filters, "not_room_types") or frozenset(),
        tags=_names(filters, "tags"),
        not_tags=_names(filters, "not_tags") or frozenset(),
    )


def _room_types(filters: Json, key: str) -> frozenset[str | None] | None:
    if filters.get(key) is None:
        return None
    values = _bounded(filters, key, shapes.MAX_NAMES)
    if not all(one is None or _is_name(one) for one in values):
        raise BadJson(f"{key} must be a list of room types")
    return frozenset(values)


def _names(filters: Json, key: str) -> frozenset[str] | None:
    if filters.get(key) is None:
        return None
    values = _bounded(filters, key, shapes.MAX_NAMES)
    if not all(_is_name(one) for one in values):
        raise BadJson(f"{key} must be a list of strings")
    return frozenset(values)


def _extensions(body: Json) -> Extensions:
    wanted = _object(body, "extensions")
    on = {name: value for name, value in wanted.items() if isinstance(value, dict) and value.get("enabled") is True}
    if not all(isinstance(value, dict) for value in wanted.values() if value is not None):
        raise BadJson("extensions: each must be an object")
    scopes = {name: _scope(on[name]) for name in ("account_data", "receipts", "typing") if name in on}
    return Extensions(to_device=_to_device(on["to_device"]) if "to_device" in on else None, e2ee="e2ee" in on, **scopes)


def _scope(value: Json) -> RoomScope:
    lists, rooms = _names(value, "lists"), _names(value, "rooms")
    return RoomScope(*(None if names is None or _ANY in names else names for names in (lists, rooms)))


def _to_device(value: Json) -> ToDeviceWish:
    limit = value.get("limit")
    if limit is None:
        limit = shapes.MAX_TO_DEVICE
    if not _is_count(limit):
        raise InvalidParam("to_device: limit must be a number of messages")
    since = value.get("since")
    if since is None:
        position = 0
    else:
        match = _TO_DEVICE_TOKEN.fullmatch(since) if isinstance(since, str) else None
        if match is None:
            raise InvalidParam("to_device: since is not a token of this server")
        position = int(match[1])
    return ToDeviceWish(position, min(max(1, limit), shapes.MAX_TO_DEVICE))


def _timeout(value: object, *, is_text: bool) -> int:
    if value is None or value == "":
        return 0
    if is_text and isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 18:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidParam("timeout must be a number of milliseconds")
    return min(value, shapes.MAX_TIMEOUT_MS)


def _presence(value: object) -> str:
    if value is None:
        return "online"
    if value not in PRESENCE_STATES:
        raise InvalidParam("set_presence must be online, offline or unavailable")
    return str(value)


def _text(values: Mapping[str, Any], key: str, max_length: int = shapes.MAX_NAME_LENGTH) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > max_length:
        raise InvalidParam(f"{key} must be a string of {max_length} characters at most")
    return value


def _object(values: Mapping[str, Any], key: str) -> Json:
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadJson(f"{key} must be an object")
    return value


def _bounded(values: Json, key: str, most: int) -> list[Any]:
    value = values.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadJson(f"{key} must be a list")
    if len(value) > most:
        raise InvalidParam(f"{key} may have {most} entries at most")
    return value


def _flag(values: Json, key: str) -> bool | None:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadJson(f"{key} must be true or false")
    return value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= shapes.MAX_NAME_LENGTH


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INDEX
