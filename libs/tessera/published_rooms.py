"""Pages of the published directory, for clients and for other servers.

Spec: C-S API §Published room directory; S-S API §Published Room Directory.
"""

import re
from collections.abc import Sequence
from typing import Any

from matrixcore.identifiers import RoomId
from tessera.http.errors import BadJson, InvalidParam
from tessera.storage import directory
from tessera.storage.database import Database
from tessera.storage.directory import PublishedRoom

DEFAULT_LIMIT = 100
MAX_ROOMS_IN_PAGE = 500
MAX_SEARCH_LENGTH = 255
MAX_ROOM_TYPES = 50
_SINCE = re.compile(r"([np])([0-9]{1,15})\.(![^\x00]{1,254})")


async def list_public_rooms(
    accounts: Database,
    *,
    limit: int,
    since: str | None,
    search_term: str | None = None,
    room_types: Sequence[str | None] | None = None,
    network: str | None = "",
) -> dict[str, Any]:
    """One page of the directory, as the answer of /publicRooms.

    Args:
        network: as `directory.list_published` takes it.

    Raises:
        InvalidParam: since is no token of this endpoint.
    """
    limit = max(1, min(limit, MAX_ROOMS_IN_PAGE))
    after = before = None
    if since is not None:
        direction, place = _parse_since(since)
        after, before = (place, None) if direction == "n" else (None, place)
    async with accounts.reading() as tx:
        rooms = await directory.list_published(
            tx,
            search_term=search_term,
            room_types=room_types,
            after=after,
            before=before,
            network=network,
            limit=limit + 1,
        )
        total = await directory.count_published(tx, search_term=search_term, room_types=room_types, network=network)
    more = len(rooms) > limit
    if more:
        rooms = rooms[1:] if before is not None else rooms[:limit]
    reply: dict[str, Any] = {"chunk": [_line(room) for room in rooms], "total_room_count_estimate": total}
    if rooms and (more or before is not None):
        reply["next_batch"] = _since("n", rooms[-1])
    if rooms and (after is not None or (before is not None and more)):
        reply["prev_batch"] = _since("p", rooms[0])
    return reply


def _since(direction: str, room: PublishedRoom) -> str:
    return f"{direction}{room.joined_members}.{room.room_id}"


def _parse_since(text: str) -> tuple[str, tuple[int, RoomId]]:
    match = _SINCE.fullmatch(text)
    if match is None:
        raise InvalidParam("since is not a token of this endpoint")
    return match[1], (int(match[2]), RoomId(match[3]))


def _line(room: PublishedRoom) -> dict[str, Any]:
    line: dict[str, Any] = {
        "room_id": room.room_id,
        "num_joined_members": room.joined_members,
        "world_readable": room.world_readable,
        "guest_can_join": room.guest_can_join,
        "join_rule": room.join_rule,
    }
    for key in ("name", "topic", "canonical_alias", "avatar_url", "room_type"):
        if (value := getattr(room, key)) is not None:
            line[key] = value
    return line


def parse_search(wanted: Any) -> tuple[str | None, list[str | None] | None]:
    """(term, room types) of the filter of POST /publicRooms.

    Raises:
        BadJson
    """
    if wanted is None:
        return None, None
    if not isinstance(wanted, dict):
        raise BadJson("filter must be an object")
    term, types = wanted.get("generic_search_term"), wanted.get("room_types")
    if term is not None and (not isinstance(term, str) or len(term) > MAX_SEARCH_LENGTH):
        raise BadJson(f"filter.generic_search_term must be a string of at most {MAX_SEARCH_LENGTH} characters")
    if types is not None and (
        not isinstance(types, list)
        or len(types) > MAX_ROOM_TYPES
        or not all(kind is None or isinstance(kind, str) for kind in types)
    ):
        raise BadJson(f"filter.room_types must be a list of at most {MAX_ROOM_TYPES} strings or nulls")
    return term, types


def parse_page(body: dict[str, Any]) -> tuple[int, str | None]:
    """(limit, since) of the body of POST /publicRooms.

    Raises:
        BadJson
    """
    limit, since = body.get("limit", DEFAULT_LIMIT), body.get("since")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise BadJson("limit must be an integer that is not negative")
    if since is not None and not isinstance(since, str):
        raise BadJson("since must be a string")
    return limit, since
