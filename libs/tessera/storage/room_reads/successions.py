"""Which room follows which: what a room says of its predecessor, and what the predecessor says of it.

Spec: C-S API §Room upgrades.
"""

from collections.abc import Sequence

import orjson

from matrixcore.identifiers import InvalidIdentifier, RoomId, parse_room_id
from tessera.storage.database import Transaction

_CREATES = """
SELECT r.room_id, e.pdu FROM rooms.rooms r
JOIN rooms.events e ON e.room_id = r.room_id AND e.event_id = r.create_event_id
WHERE r.room_id = ANY($1::text[])
"""

_TOMBSTONES = """
SELECT s.room_id, e.pdu FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = ANY($1::text[]) AND s.type = 'm.room.tombstone' AND s.state_key = ''
"""


async def list_predecessors(tx: Transaction, room_ids: Sequence[RoomId]) -> dict[RoomId, RoomId]:
    """Those of the rooms that name a predecessor, and which; one query."""
    found: dict[RoomId, RoomId] = {}
    for room_id, pdu in await tx.fetch(_CREATES, list(room_ids)):
        predecessor = orjson.loads(pdu)["content"].get("predecessor")
        named = _room_of(predecessor.get("room_id")) if isinstance(predecessor, dict) else None
        if named is not None and named != room_id:
            found[RoomId(room_id)] = named
    return found


async def list_successors(tx: Transaction, room_ids: Sequence[RoomId]) -> dict[RoomId, RoomId]:
    """Those of the rooms that have a tombstone, and where it leads; one query."""
    found: dict[RoomId, RoomId] = {}
    for room_id, pdu in await tx.fetch(_TOMBSTONES, list(room_ids)):
        named = _room_of(orjson.loads(pdu)["content"].get("replacement_room"))
        if named is not None:
            found[RoomId(room_id)] = named
    return found


def _room_of(value: object) -> RoomId | None:
    try:
        return parse_room_id(value)
    except InvalidIdentifier:
        return None
