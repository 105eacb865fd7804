"""The members of a room, now and before."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow

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


# Constant text is put together here; values are always parameters.
_CURRENT = f"""
SELECT {EVENT_COLUMNS} FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = $1 AND s.type = 'm.room.member'
  AND ($2::text IS NULL AND $3::text IS NULL OR s.membership = $2 OR s.membership <> $3)
"""  # noqa: S608  constant text

_AT = f"""
SELECT {EVENT_COLUMNS} FROM (
    SELECT DISTINCT ON (state_key) room_id, event_id, membership FROM rooms.state_history
    WHERE room_id = $1 AND type = 'm.room.member' AND (anchor, sub) <= ($4, $5)
    ORDER BY state_key, anchor DESC, sub DESC
) s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE $2::text IS NULL AND $3::text IS NULL OR s.membership = $2 OR s.membership <> $3
"""  # noqa: S608  constant text

# The content comes out of the PDU; a member event is small, and a joined member's is never redacted to less.
_JOINED = """
SELECT s.state_key, e.pdu FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = $1 AND s.type = 'm.room.member' AND s.membership = 'join'
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


async def list_members(
    tx: Transaction,
    room_id: RoomId,
    *,
    at: OrderKey | None = None,
    membership: str | None = None,
    not_membership: str | None = None,
) -> list[EventRow]:
    """The member events, now or at a point of the room's order, in no order.

    Args:
        membership, not_membership: those that fulfil either; both None for all.
    """
    if at is None:
        rows = await tx.fetch(_CURRENT, room_id, membership, not_membership)
    else:
        rows = await tx.fetch(_AT, room_id, membership, not_membership, at.anchor, at.sub)
    return [EventRow._make(row) for row in rows]


async def list_joined_members(tx: Transaction, room_id: RoomId) -> list[tuple[UserId, bytes]]:
    """(user, PDU of the member event) of everybody who is joined now."""
    return [(UserId(row[0]), row[1]) for row in await tx.fetch(_JOINED, room_id)]


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
