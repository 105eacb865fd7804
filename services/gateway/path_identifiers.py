"""Identifiers in paths and queries: checked once, 400 M_INVALID_PARAM for what is none."""

from matrixcore.identifiers import (
    EventId,
    InvalidIdentifier,
    RoomAlias,
    RoomId,
    UserId,
    parse_event_id,
    parse_room_alias,
    parse_room_id,
    parse_user_id,
)
from tessera.http.errors import InvalidParam
from tessera.pagination_token import InvalidPageToken, parse_page_token
from tessera.records import OrderKey
from tessera.sync_token import InvalidSyncToken, component_for


def room_id_of(text: str) -> RoomId:
    """A room ID. Raises InvalidParam."""
    try:
        return parse_room_id(text)
    except InvalidIdentifier as error:
        raise InvalidParam(f"roomId: {error}") from error


def event_id_of(text: str) -> EventId:
    """An event ID. Raises InvalidParam."""
    try:
        return parse_event_id(text)
    except InvalidIdentifier as error:
        raise InvalidParam(f"eventId: {error}") from error


def user_id_of(text: str) -> UserId:
    """A user ID. Raises InvalidParam."""
    try:
        return parse_user_id(text)
    except InvalidIdentifier as error:
        raise InvalidParam(f"userId: {error}") from error


def alias_of(text: str) -> RoomAlias:
    """A room alias. Raises InvalidParam."""
    try:
        return parse_room_alias(text)
    except InvalidIdentifier as error:
        raise InvalidParam(f"roomAlias: {error}") from error


def point_of(text: str | None, name: str, partition: int) -> OrderKey | None:
    """The point of a room's order that a page token or a sync token names; None if the parameter is missing.

    Args:
        partition: of the room, for the component of a sync token.

    Raises:
        InvalidParam
    """
    if text is None:
        return None
    try:
        return parse_page_token(text)
    except InvalidPageToken:
        pass
    try:
        # A token that does not know the partition is older than the user's first room in it.
        return OrderKey(component_for(text, partition) or 0)
    except InvalidSyncToken as error:
        raise InvalidParam(f"{name} is not a token of this server") from error
