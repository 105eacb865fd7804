"""The rooms that spaces consist of. Spec: C-S API §Spaces."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction


class ChildEvent(NamedTuple):
    """One m.space.child event of a space."""

    room_id: RoomId
    state_key: str
    sender: UserId
    origin_server_ts: int
    pdu: bytes


_LIST = """
SELECT c.* FROM unnest($1::text[]) AS w (room_id) CROSS JOIN LATERAL (
    SELECT s.room_id, s.state_key, e.sender, e.origin_server_ts, e.pdu FROM rooms.current_state s
    JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
    WHERE s.room_id = w.room_id AND s.type = 'm.space.child' ORDER BY s.state_key LIMIT $2
) AS c
"""


async def list_children(tx: Transaction, room_ids: Sequence[RoomId], limit_each: int) -> list[ChildEvent]:
    """The child events of several spaces, at most `limit_each` of one; one query."""
    return [ChildEvent(*row) for row in await tx.fetch(_LIST, list(room_ids), limit_each)]
