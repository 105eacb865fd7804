"""Rooms' policy servers as current state has them. Spec: S-S API §Policy Servers."""

from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import RoomId
from tessera.storage.database import Transaction

_FIND = """
SELECT r.room_version, e.pdu FROM rooms.rooms r
LEFT JOIN rooms.current_state c ON c.room_id = r.room_id AND c.type = 'm.room.policy' AND c.state_key = ''
LEFT JOIN rooms.events e ON e.room_id = c.room_id AND e.event_id = c.event_id
WHERE r.room_id = $1
"""


class StoredPolicy(NamedTuple):
    """What a room says of its policy server; `content` is that of m.room.policy, None if there is none."""

    room_version: str
    content: dict[str, Any] | None


async def find_policy(tx: Transaction, room_id: RoomId) -> StoredPolicy | None:
    """The room's policy; None if the room is not here."""
    row = await tx.fetchrow(_FIND, room_id)
    return None if row is None else StoredPolicy(row[0], None if row[1] is None else orjson.loads(row[1])["content"])
