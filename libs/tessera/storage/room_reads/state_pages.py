"""State of one type by its keys, page by page: for what goes through a whole room without holding it."""

from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId
from tessera.storage.database import Transaction


class KeyedState(NamedTuple):
    """A state event by its key."""

    state_key: str
    pdu: bytes


_PAGE = """
SELECT s.state_key, e.pdu FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = $1 AND s.type = $2 AND s.state_key > $3
ORDER BY s.state_key LIMIT $4
"""

# coalesce keeps PostgreSQL from the index by user and membership, which goes through the members of all rooms.
_MEMBER_PAGE = """
SELECT s.state_key, e.pdu FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = $1 AND s.type = 'm.room.member' AND s.state_key > $2 AND coalesce(s.membership, '') = $3
ORDER BY s.state_key LIMIT $4
"""

_LAST_EVENT = "SELECT forward_extremities[1] FROM rooms.rooms WHERE room_id = $1"


async def list_state_page(
    tx: Transaction, room_id: RoomId, event_type: str, after: str = "", limit: int = 100
) -> list[KeyedState]:
    """State of a type in the order of its keys, after `after`; the empty key is in no page."""
    return [KeyedState(*row) for row in await tx.fetch(_PAGE, room_id, event_type, after, limit)]


async def list_member_page(
    tx: Transaction, room_id: RoomId, membership: str, after: str = "", limit: int = 100
) -> list[KeyedState]:
    """Member events of one membership in the order of the users, after `after`."""
    return [KeyedState(*row) for row in await tx.fetch(_MEMBER_PAGE, room_id, after, membership, limit)]


async def find_last_event(tx: Transaction, room_id: RoomId) -> EventId | None:
    """One of the newest events of a room; None if the room is not known here."""
    event_id: EventId | None = await tx.fetchval(_LAST_EVENT, room_id)
    return event_id
