"""What a client asks of GET /sync. Spec: C-S API §Syncing."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_plus

import orjson

from matrixcore.filters import Filter, InvalidFilter, parse_filter
from matrixcore.identifiers import UserId
from tessera.http.errors import BadJson, InvalidParam
from tessera.sync_token import InvalidSyncToken, SyncToken, decode_token

MAX_TIMEOUT_MS = 120_000
DEFAULT_TIMELINE_LIMIT = 10
MAX_FILTER_LENGTH = 65_536
MAX_REMEMBERED = 2_000  # bytes of a parameter
PRESENCE_STATES = ("online", "offline", "unavailable")

NO_FILTER = Filter()


class SyncRequest(NamedTuple):
    """A request for what is new to one device.

    Attributes:
        since_text: the token as the client sent it; names the lazy-loading memory.
        set_presence: what the user becomes by asking.
    """

    user_id: UserId
    device_id: str
    since: SyncToken | None
    since_text: str
    filter: Filter
    timeout_ms: int = 0
    full_state: bool = False
    use_state_after: bool = False
    set_presence: str = "online"

    @property
    def timeline_limit(self) -> int:
        """How many events of a room are sent at most."""
        return self.filter.room.timeline.limit_or(DEFAULT_TIMELINE_LIMIT)


def split_since(query_string: bytes) -> tuple[bytes, str | None]:
    """A query without its `since`, and that; a client's requests differ in nothing else.

    None if it is not plain what `since` is.
    """
    before, name, after = query_string.partition(b"since=")
    if not name:
        return query_string, ""
    value, _, rest = after.partition(b"&")
    if (before and not before.endswith(b"&")) or b"%" in value or b"+" in value or b"since" in rest:
        return query_string, None
    return before + rest, value.decode("ascii", errors="replace")


def read_query(query_string: bytes) -> dict[str, str]:
    """The parameters of a request, the last of a name; a client repeats all but `since`, so values are remembered."""
    pairs = (pair.partition(b"=") for pair in query_string.split(b"&"))
    return {_unquoted(name): _unquoted(value) for name, _, value in pairs}


@lru_cache(maxsize=2_000)
def _remembered(raw: bytes) -> str:
    return unquote_plus(raw.decode("ascii", errors="replace"))


def _unquoted(raw: bytes) -> str:
    if b"%" not in raw and b"+" not in raw:
        return raw.decode("ascii", errors="replace")
    return _remembered(raw) if len(raw) <= MAX_REMEMBERED else unquote_plus(raw.decode("ascii", errors="replace"))


def parse_since(text: str | None) -> SyncToken | None:
    """The token of a request, None for an initial sync. Raises InvalidParam."""
    if not text:
        return None
    try:
        return decode_token(text)
    except InvalidSyncToken as error:
        raise InvalidParam(f"since: {error}") from error


def parse_inline_filter(text: str | bytes) -> Filter:
    """A filter given as JSON. Raises BadJson or InvalidParam."""
    if len(text) > MAX_FILTER_LENGTH:
        raise InvalidParam("filter is too long")
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadJson("filter is not JSON") from error
    try:
        return parse_filter(body)
    except InvalidFilter as error:
        raise InvalidParam(f"filter: {error}") from error


def parse_timeout(query: Mapping[str, str]) -> int:
    """How long to wait, in milliseconds, bounded. Raises InvalidParam."""
    text = query.get("timeout")
    if not text:
        return 0
    try:
        timeout = int(text)
    except ValueError:
        raise InvalidParam("timeout must be a number of milliseconds") from None
    if timeout < 0 or len(text) > 18:
        raise InvalidParam("timeout must be a number of milliseconds")
    return min(timeout, MAX_TIMEOUT_MS)


def parse_flag(query: Mapping[str, str], name: str) -> bool:
    """A boolean parameter, false if it is missing. Raises InvalidParam."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise InvalidParam(f"{name} must be true or false")
    return text == "true"


def parse_set_presence(query: Mapping[str, str]) -> str:
    """set_presence, online if it is missing. Raises InvalidParam."""
    text = query.get("set_presence", "online")
    if text not in PRESENCE_STATES:
        raise InvalidParam("set_presence must be online, offline or unavailable")
    return text
