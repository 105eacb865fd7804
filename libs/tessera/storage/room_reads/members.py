"""The members of a room, now and before."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction

_JOINED_PAIRS = """
SELECT q.room_id, q.user_id FROM unnest($1::text[], $2::text[]) AS q (room_id, user_id)
JOIN rooms.current_state c
    ON c.room_id = q.room_id AND c.type = 'm.room.member' AND c.state_key = q.user_id AND c.membership = 'join'
"""


class MembershipStep(NamedTuple):
    """A membership that a user got at a point of the room's order."""

    order: OrderKey
    membership: str
    event_id: EventId | None


_JOINED = """
SELECT state_key FROM rooms.current_state WHERE room_id = $1 AND type = 'm.room.member' AND membership = 'join'
"""

_JOINED_OF_USER = """
SELECT s.room_id, e.pdu FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = ANY($1::text[]) AND s.type = 'm.room.member' AND s.state_key = $2 AND s.membership = 'join'
"""

_HISTORY = """
SELECT anchor, sub, membership, event_id FROM rooms.state_history
WHERE room_id = $1 AND type = 'm.room.member' AND state_key = $2
ORDER BY anchor, sub
"""

_HAS_LOCAL_MEMBER = """
SELECT s.state_key FROM rooms.current_state s
WHERE s.room_id = $1 AND s.type = 'm.room.member' AND s.membership = 'join' AND s.state_key LIKE $2 LIMIT $3
"""


async def list_member_contents(
    tx: Transaction, room_ids: Sequence[RoomId], user_id: UserId
) -> list[tuple[RoomId, bytes]]:
    """(room, PDU of the member event) of those of the rooms that the user is joined to now."""
    return [(RoomId(row[0]), row[1]) for row in await tx.fetch(_JOINED_OF_USER, list(room_ids), user_id)]


async def list_joined_users(tx: Transaction, room_id: RoomId) -> list[UserId]:
    """Everybody who is joined now."""
    return [UserId(row[0]) for row in await tx.fetch(_JOINED, room_id)]


async def list_membership_steps(tx: Transaction, room_id: RoomId, user_id: UserId) -> list[MembershipStep]:
    """All memberships that one user has had in the room, oldest first."""
    rows = await tx.fetch(_HISTORY, room_id, user_id)
    return [MembershipStep(OrderKey(row[0], row[1]), row[2] or "leave", row[3]) for row in rows]


async def list_joined_of_server(tx: Transaction, room_id: RoomId, server_name: str, limit: int) -> Sequence[UserId]:
    """Users of one server who are joined now, at most `limit`."""
    suffix = "%:" + server_name.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")
    return [UserId(row[0]) for row in await tx.fetch(_HAS_LOCAL_MEMBER, room_id, suffix, limit)]


async def list_joined_pairs(tx: Transaction, pairs: Sequence[tuple[RoomId, UserId]]) -> set[tuple[RoomId, UserId]]:
    """Those of the (room, user) of which the user is joined to the room."""
    rows = await tx.fetch(_JOINED_PAIRS, [one[0] for one in pairs], [one[1] for one in pairs])
    return {(row[0], row[1]) for row in rows}
