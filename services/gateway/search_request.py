"""What a search asks for, checked; and the tokens of its pages. Spec: C-S API §Server Side Search."""

import binascii
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from matrixcore.filters import InvalidFilter, RoomEventFilter, parse_room_event_filter
from tessera.http.errors import BadJson, InvalidParam, MissingParam
from tessera.search_texts import KINDS_BY_KEY, SEARCHED_TYPES, SearchKind
from tessera.storage.search import parse_term

DEFAULT_LIMIT = 10
MAX_LIMIT = 100
DEFAULT_CONTEXT = 5
MAX_CONTEXT = 20
MAX_TERM_LENGTH = 500
MAX_TOKEN_LENGTH = 2_000
MAX_INTEGER = (1 << 53) - 1

Grouping = Literal["room_id", "sender"]
GROUPINGS: tuple[Grouping, ...] = ("room_id", "sender")


class PageStart(NamedTuple):
    """Where a page begins: below this hit, perhaps within one group. One order of all shards' hits needs one place."""

    rank: float
    ts: int
    event_id: str
    total: int  # what the first page said
    group: Grouping | None = None
    group_value: str | None = None


@dataclass(frozen=True, slots=True)
class WantedContext:
    """event_context: how many events around each result."""

    before: int
    after: int
    profiles: bool


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """The category room_events of a search.

    Attributes:
        query: for the index; empty where the term has no words.
    """

    query: str
    highlights: Sequence[str]
    kinds: Sequence[SearchKind]
    filter: RoomEventFilter
    by_rank: bool
    limit: int
    context: WantedContext | None
    with_state: bool
    groupings: Sequence[Grouping]
    start: PageStart | None


def parse_search(category: object, next_batch: str | None) -> SearchRequest:
    """The body's search_categories.room_events.

    Raises:
        BadJson, InvalidParam, MissingParam
    """
    if not isinstance(category, Mapping):
        raise BadJson("room_events must be an object")
    term = category.get("search_term")
    if term is None:
        raise MissingParam("search_term is missing")
    if not isinstance(term, str):
        raise BadJson("search_term must be a string")
    if len(term) > MAX_TERM_LENGTH:
        raise InvalidParam(f"search_term is longer than {MAX_TERM_LENGTH} characters")
    query, words = parse_term(term)
    order = category.get("order_by", "rank")
    if order not in ("rank", "recent"):
        raise InvalidParam("order_by must be rank or recent")
    wanted = _parse_filter(category.get("filter"))
    return SearchRequest(
        query=query,
        highlights=words,
        kinds=_parse_kinds(category.get("keys"), wanted),
        filter=wanted,
        by_rank=order == "rank",
        limit=max(1, min(wanted.limit_or(DEFAULT_LIMIT), MAX_LIMIT)),
        context=_parse_context(category.get("event_context")),
        with_state=_flag(category, "include_state"),
        groupings=_parse_groupings(category.get("groupings")),
        start=None if next_batch is None else parse_page_start(next_batch),
    )


def encode_page_start(start: PageStart) -> str:
    """The token that leads there."""
    return urlsafe_b64encode(orjson.dumps(list(start))).rstrip(b"=").decode()


def parse_page_start(text: str) -> PageStart:
    """The inverse of `encode_page_start`. Raises InvalidParam."""
    error = InvalidParam("next_batch is not a token of a search")
    if len(text) > MAX_TOKEN_LENGTH or not text.isascii():
        raise error
    try:
        fields = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError):
        raise error from None
    match fields:
        case [float() | int() as rank, int() as ts, str() as event_id, int() as count, group, value]:
            is_whole = (group is None and value is None) or (group in GROUPINGS and isinstance(value, str))
            is_sane = math.isfinite(rank) and abs(ts) <= MAX_INTEGER and 0 <= count <= MAX_INTEGER
            if is_whole and is_sane and "\0" not in event_id:
                return PageStart(float(rank), ts, event_id, count, group, value)
    raise error


def _parse_filter(body: object) -> RoomEventFilter:
    try:
        return parse_room_event_filter({} if body is None else body)
    except InvalidFilter as error:
        raise InvalidParam(f"filter: {error}") from error


def _parse_kinds(keys: object, wanted: RoomEventFilter) -> list[SearchKind]:
    """The kinds of event that are both asked for by key and allowed by type."""
    if keys is None:
        kinds = set(SearchKind)
    elif isinstance(keys, list) and all(isinstance(key, str) for key in keys):
        if unknown := [key for key in keys if key not in KINDS_BY_KEY]:
            raise InvalidParam(f"there is no key {unknown[0][:64]}")
        kinds = {KINDS_BY_KEY[key] for key in keys}
    else:
        raise BadJson("keys must be a list of strings")
    return [
        kind
        for event_type, kind in SEARCHED_TYPES.items()
        if kind in kinds
        and (wanted.types is None or wanted.types.matches(event_type))
        and not (wanted.not_types is not None and wanted.not_types.matches(event_type))
    ]


def _parse_context(body: object) -> WantedContext | None:
    if body is None:
        return None
    if not isinstance(body, Mapping):
        raise BadJson("event_context must be an object")
    before, after = (_number(body, name, DEFAULT_CONTEXT) for name in ("before_limit", "after_limit"))
    return WantedContext(before, after, _flag(body, "include_profile"))


def _parse_groupings(body: object) -> list[Grouping]:
    if body is None:
        return []
    entries = body.get("group_by", []) if isinstance(body, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise BadJson("groupings must be an object with group_by, a list of objects")
    keys = [entry.get("key") for entry in entries]
    if unknown := [key for key in keys if key not in GROUPINGS]:
        raise InvalidParam(f"there is no grouping by {str(unknown[0])[:64]}")
    return [grouping for grouping in GROUPINGS if grouping in keys]


def _number(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidParam(f"{name} must be an integer that is not negative")
    return min(value, MAX_CONTEXT)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadJson(f"{name} must be true or false")
    return bool(value)
