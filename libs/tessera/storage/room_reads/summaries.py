"""What a room looks like from outside: the source of the directory's lines."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import RoomId, ServerName
from tessera.storage.database import Transaction

SUMMARY_TYPES = (
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.create",
    "m.room.encryption",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.name",
    "m.room.topic",
)

_LIST = """
SELECT r.room_id, p.incarnation, r.last_position, r.room_version, r.joined_count,
       $3::text IS NULL OR own.joined_count > 0, s.type, e.pdu
FROM rooms.rooms r
JOIN rooms.partitions p ON p.partition = r.partition
LEFT JOIN rooms.current_state s ON s.room_id = r.room_id AND s.state_key = '' AND s.type = ANY($2::text[])
LEFT JOIN rooms.room_servers own ON own.room_id = r.room_id AND own.server_name = $3
LEFT JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE r.room_id = ANY($1::text[])
"""


class RoomOutline(NamedTuple):
    """A room at (incarnation, position) with the contents of its SUMMARY_TYPES.

    Attributes:
        is_followed: whether the server that was asked for has members there; without, this may be long out of date.
    """

    room_id: RoomId
    incarnation: int
    position: int
    room_version: str
    joined_count: int
    contents: dict[str, dict[str, Any]]
    is_followed: bool = True


async def list_outlines(
    tx: Transaction, room_ids: Sequence[RoomId], server_name: ServerName | None = None
) -> list[RoomOutline]:
    """The outlines of those of the rooms that are known here, in one query.

    Args:
        server_name: whose being in the rooms is told by `is_followed`; None for nobody's.
    """
    outlines: dict[str, RoomOutline] = {}
    for room_id, incarnation, position, version, joined, followed, event_type, pdu in await tx.fetch(
        _LIST, list(room_ids), list(SUMMARY_TYPES), server_name
    ):
        made = RoomOutline(room_id, incarnation, position, version, joined, {}, followed is True)
        outline = outlines.setdefault(room_id, made)
        if event_type is not None and pdu is not None:
            outline.contents[event_type] = orjson.loads(pdu)["content"]
    return list(outlines.values())
