"""Identifiers and their grammar.

The `NewType`s here are made only by their `parse_` functions, so that a value of one of these
types has been checked. Spec: Appendices §Identifier Grammar.
"""

import ipaddress
import re
from functools import lru_cache
from typing import NewType

ServerName = NewType("ServerName", str)
UserId = NewType("UserId", str)
RoomId = NewType("RoomId", str)
RoomAlias = NewType("RoomAlias", str)
EventId = NewType("EventId", str)
StateKey = tuple[str, str]  # (event type, state key)

MAX_ID_BYTES = 255

_SERVER_NAME = re.compile(
    r"(?:(?P<ipv4>[0-9]{1,3}(?:\.[0-9]{1,3}){3})|\[(?P<ipv6>[0-9A-Fa-f:.]{2,45})\]|(?P<dns>[0-9A-Za-z.-]{1,255}))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
# Historical localparts: anything but ":", NUL and surrogates, the empty string included.
_FORBIDDEN_IN_LOCALPART = re.compile("[:\x00\ud800-\udfff]")
_FORBIDDEN_IN_OPAQUE = re.compile("[\x00\ud800-\udfff]")
_NEW_LOCALPART = re.compile(r"[a-z0-9._=/+-]+")
_COMPLIANT_LOCALPART = re.compile(r"[\x21-\x39\x3b-\x7e]+")
_HASH_ROOM_ID = re.compile(r"![A-Za-z0-9_-]{43}")


class InvalidIdentifier(ValueError):
    """A string (or another value) that does not follow the grammar of the identifier it should be."""


def fits_in_bytes(text: str, limit: int = MAX_ID_BYTES) -> bool:
    """Whether the UTF-8 form of `text` has at most `limit` bytes; surrogates count as three."""
    length = len(text)
    if length * 4 <= limit:
        return True
    return length <= limit and (text.isascii() or len(text.encode("utf-8", "surrogatepass")) <= limit)


@lru_cache(maxsize=16_384)
def _parse_server_name(text: str) -> ServerName:
    match = _SERVER_NAME.fullmatch(text)
    if match is None:
        raise InvalidIdentifier("not a server name")
    ipv4, ipv6, port = match["ipv4"], match["ipv6"], match["port"]
    if ipv4 is not None and any(int(part) > 255 for part in ipv4.split(".")):
        raise InvalidIdentifier("not an IPv4 address")
    if ipv6 is not None:
        try:
            ipaddress.IPv6Address(ipv6)
        except ValueError:
            raise InvalidIdentifier("not an IPv6 address") from None
    if port is not None and int(port) > 65_535:
        raise InvalidIdentifier("port out of range")
    return ServerName(text)


def parse_server_name(text: object) -> ServerName:
    """Check a server name: DNS name, IPv4 or [IPv6], with an optional port.

    Spec: Appendices §Server Name.

    Raises:
        InvalidIdentifier
    """
    if not isinstance(text, str):
        raise InvalidIdentifier("a server name must be a string")
    return _parse_server_name(text)


def _check_with_domain(text: object, sigil: str, what: str) -> str:
    """Check `<sigil>localpart:server_name` and answer it with its type known."""
    if not isinstance(text, str):
        raise InvalidIdentifier(f"{what} must be a string")
    if not text.startswith(sigil):
        raise InvalidIdentifier(f"{what} must start with {sigil!r}")
    localpart, colon, domain = text[1:].partition(":")
    if not colon:
        raise InvalidIdentifier(f"{what} must have a domain")
    if not fits_in_bytes(text):
        raise InvalidIdentifier(f"{what} must not exceed {MAX_ID_BYTES} bytes")
    if _FORBIDDEN_IN_LOCALPART.search(localpart):
        raise InvalidIdentifier(f"{what} has a forbidden character")
    _parse_server_name(domain)
    return text


@lru_cache(maxsize=16_384)
def _parse_user_id(text: str) -> UserId:
    return UserId(_check_with_domain(text, "@", "a user ID"))


def parse_user_id(text: object) -> UserId:
    """Check a user ID, historical ones included (any localpart, even an empty one).

    Spec: Appendices §User Identifiers, §Historical User IDs.

    Raises:
        InvalidIdentifier
    """
    if not isinstance(text, str):
        raise InvalidIdentifier("a user ID must be a string")
    return _parse_user_id(text)


def is_compliant_user_id(user_id: UserId) -> bool:
    """Whether a user ID may be shown to clients outside an event.

    Spec: Appendices §Historical User IDs: not with an empty localpart or characters outside U+0021 to U+007E.
    """
    return _COMPLIANT_LOCALPART.fullmatch(localpart_of(user_id)) is not None


def is_valid_localpart(localpart: str) -> bool:
    """Whether a new account may have this localpart (length apart: see `user_id_of`).

    Spec: Appendices §User Identifiers.
    """
    return _NEW_LOCALPART.fullmatch(localpart) is not None


def user_id_of(localpart: str, server_name: ServerName) -> UserId:
    """The user ID of a localpart on a server.

    Raises:
        InvalidIdentifier: also when it would exceed 255 bytes.
    """
    return parse_user_id(f"@{localpart}:{server_name}")


def parse_room_id(text: object) -> RoomId:
    """Check a room ID: `!opaque:domain`, or `!` + 43 characters of URL-safe base64 (room version 12).

    Spec: Appendices §Room IDs.

    Raises:
        InvalidIdentifier
    """
    if isinstance(text, str) and ":" not in text and _HASH_ROOM_ID.fullmatch(text):
        return RoomId(text)
    return RoomId(_check_with_domain(text, "!", "a room ID"))


def parse_room_alias(text: object) -> RoomAlias:
    """Check a room alias. Spec: Appendices §Room Aliases.

    Raises:
        InvalidIdentifier
    """
    alias = _check_with_domain(text, "#", "a room alias")
    if alias.startswith("#:"):
        raise InvalidIdentifier("a room alias must have a localpart")
    return RoomAlias(alias)


def parse_event_id(text: object) -> EventId:
    """Check an event ID of any room version: `$` and something, at most 255 bytes.

    Spec: Appendices §Event IDs ("fully opaque").

    Raises:
        InvalidIdentifier
    """
    if not isinstance(text, str):
        raise InvalidIdentifier("an event ID must be a string")
    if len(text) < 2 or text[0] != "$":
        raise InvalidIdentifier("an event ID must start with '$'")
    if not fits_in_bytes(text):
        raise InvalidIdentifier(f"an event ID must not exceed {MAX_ID_BYTES} bytes")
    if _FORBIDDEN_IN_OPAQUE.search(text):
        raise InvalidIdentifier("an event ID has a forbidden character")
    return EventId(text)


def server_of(identifier: UserId | RoomAlias | RoomId | EventId) -> ServerName:
    """The domain part of an identifier that has been parsed.

    Raises:
        InvalidIdentifier: it has none (room and event IDs of newer room versions).
    """
    _, colon, domain = identifier.partition(":")
    if not colon:
        raise InvalidIdentifier("the identifier has no domain")
    return ServerName(domain)


def localpart_of(identifier: UserId | RoomAlias | RoomId) -> str:
    """What stands between the sigil and the first colon of an identifier that has been parsed."""
    return identifier[1:].partition(":")[0]
