"""What a room looks like from outside: the source of the directory's lines."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import RoomId
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
SELECT r.room_id, p.incarnation, r.last_position, r.room_version, r.joined_count, s.type, e.pdu
FROM rooms.rooms r
JOIN rooms.partitions p ON p.partition = r.partition
LEFT JOIN rooms.current_state s ON s.room_id = r.room_id AND s.state_key = '' AND s.type = ANY($2::text[])
LEFT JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE r.room_id = ANY($1::text[])
"""


class RoomOutline(NamedTuple):
    """A room at (incarnation, position) with the contents of its SUMMARY_TYPES."""

    room_id: RoomId
    incarnation: int
    position: int
    room_version: str
    joined_count: int
    contents: dict[str, dict[str, Any]]


async def list_outlines(tx: Transaction, room_ids: Sequence[RoomId]) -> list[RoomOutline]:
    """The outlines of those of the rooms that are known here, in one query."""
    outlines: dict[str, RoomOutline] = {}
    for room_id, incarnation, position, version, joined, event_type, pdu in await tx.fetch(
        _LIST, list(room_ids), list(SUMMARY_TYPES)
    ):
        outline = outlines.setdefault(room_id, RoomOutline(room_id, incarnation, position, version, joined, {}))
        if event_type is not None and pdu is not None:
            outline.contents[event_type] = orjson.loads(pdu)["content"]
    return list(outlines.values())
