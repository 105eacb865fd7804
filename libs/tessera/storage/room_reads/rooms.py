"""What a request must know of a room before anything else: its version, and what the reader is to it."""

from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Row, Transaction
from tessera.storage.room_reads.members import MembershipStep


class RoomRow(NamedTuple):
    """A room that has been created here or joined."""

    room_id: RoomId
    partition: int
    room_version: str
    creator: UserId
    create_event_id: EventId
    joined_count: int
    invited_count: int
    last_position: int


class RoomForReader(NamedTuple):
    """A room with the current membership of one user, None where there is none.

    Attributes:
        is_followed: whether the user's server has members in it, or nobody has: then all that is known is so.
    """

    room: RoomRow
    membership: str | None
    member_event_id: EventId | None
    member_order: OrderKey | None
    is_followed: bool = True


_FOR_READER = """
SELECT r.room_id, r.partition, r.room_version, r.creator, r.create_event_id, r.joined_count, r.invited_count,
       r.last_position, m.membership, m.event_id, m.anchor, m.sub,
       EXISTS (
           SELECT FROM rooms.room_servers s WHERE s.room_id = $1 AND s.joined_count > 0
           AND s.server_name = substr($2, strpos($2, ':') + 1)
       ) OR NOT EXISTS (SELECT FROM rooms.room_servers s WHERE s.room_id = $1 AND s.joined_count > 0)
FROM rooms.rooms r
LEFT JOIN rooms.current_state m ON m.room_id = r.room_id AND m.type = 'm.room.member' AND m.state_key = $2
WHERE r.room_id = $1
"""

ROOM_COLUMNS = """r.room_id, r.partition, r.room_version, r.creator, r.create_event_id, r.joined_count, r.invited_count,
    r.last_position, h.anchors, h.subs, h.memberships, h.event_ids"""

# $1 is the room, $2 the user.
ROOM_FROM = """rooms.rooms r
CROSS JOIN LATERAL (
    SELECT array_agg(anchor ORDER BY anchor, sub) AS anchors, array_agg(sub ORDER BY anchor, sub) AS subs,
           array_agg(membership ORDER BY anchor, sub) AS memberships,
           array_agg(event_id ORDER BY anchor, sub) AS event_ids
    FROM rooms.state_history WHERE room_id = $1 AND type = 'm.room.member' AND state_key = $2
) h"""

# Constant text is put together here; values are always parameters.
_WITH_STEPS = f"SELECT {ROOM_COLUMNS} FROM {ROOM_FROM} WHERE r.room_id = $1"  # noqa: S608  constant text

_MEMBERSHIPS = """
SELECT room_id, membership FROM rooms.current_state
WHERE room_id = ANY($1::text[]) AND type = 'm.room.member' AND state_key = $2
"""


async def find_for_reader(tx: Transaction, room_id: RoomId, user_id: UserId) -> RoomForReader | None:
    """The room and what the user is in it; None if the room is not known here."""
    row = await tx.fetchrow(_FOR_READER, room_id, user_id)
    if row is None:
        return None
    order = None if row[10] is None else OrderKey(row[10], row[11])
    return RoomForReader(RoomRow(*row[:8]), row[8], row[9], order, row[12])


async def find_with_steps(
    tx: Transaction, room_id: RoomId, user_id: UserId
) -> tuple[RoomRow, list[MembershipStep]] | None:
    """The room and every membership that the user has had in it, oldest first; None if the room is not known here."""
    row = await tx.fetchrow(_WITH_STEPS, room_id, user_id)
    return None if row is None else room_with_steps(row)


def room_with_steps(row: Row) -> tuple[RoomRow, list[MembershipStep]]:
    """What a row that begins with ROOM_COLUMNS says."""
    steps = [
        MembershipStep(OrderKey(anchor, sub), membership or "leave", event_id)
        for anchor, sub, membership, event_id in zip(*(row[at] or () for at in range(8, 12)), strict=True)
    ]
    return RoomRow(*row[:8]), steps


async def list_memberships_of(tx: Transaction, room_ids: list[RoomId], user_id: UserId) -> dict[RoomId, str]:
    """The user's current memberships in those of the rooms that lie in this shard and know the user."""
    return {RoomId(row[0]): row[1] for row in await tx.fetch(_MEMBERSHIPS, room_ids, user_id)}
