"""Who made rooms. Spec: C-S API §Room Events, m.room.create."""

from collections.abc import Sequence

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction

_LIST = """
SELECT s.room_id, e.sender FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = ANY($1::text[]) AND s.type = 'm.room.create' AND s.state_key = ''
"""


async def list_creators(tx: Transaction, room_ids: Sequence[RoomId]) -> dict[RoomId, UserId]:
    """The senders of the create events of those of the rooms that are known here, in one query."""
    return {RoomId(row[0]): UserId(row[1]) for row in await tx.fetch(_LIST, list(room_ids))}
