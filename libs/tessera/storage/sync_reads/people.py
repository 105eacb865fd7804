"""Who is in rooms with whom, and who came or went."""

from collections.abc import Collection, Mapping

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction
from tessera.storage.sync_reads.rooms import HERO_COUNT

# Joined and invited members in the order of their arrival; the others stand in where there are none.
_HEROES = """
SELECT w.room_id, m.state_key
FROM unnest($1::text[]) AS w (room_id)
CROSS JOIN LATERAL (
    SELECT c.state_key, c.membership, c.anchor, c.sub FROM rooms.current_state c
    WHERE c.room_id = w.room_id AND c.type = 'm.room.member' AND c.state_key <> $2
    ORDER BY c.membership NOT IN ('join', 'invite'), c.anchor, c.sub LIMIT $3
) m
ORDER BY w.room_id, m.membership NOT IN ('join', 'invite'), m.anchor, m.sub
"""

_SHARED_ROOMS = """
SELECT DISTINCT c.state_key FROM rooms.current_state c
WHERE c.type = 'm.room.member' AND c.membership = 'join' AND c.room_id = ANY($1::text[])
  AND c.state_key = ANY($2::text[])
"""

_ROOMS_OF_USERS = """
SELECT state_key, room_id FROM rooms.current_state
WHERE type = 'm.room.member' AND membership = 'join' AND state_key = ANY($1::text[])
"""

_MEMBERS_OF_ROOMS = """
SELECT DISTINCT state_key FROM rooms.current_state
WHERE room_id = ANY($1::text[]) AND type = 'm.room.member' AND membership = 'join'
"""

# Who came or went: the membership at the point against the current one.
_MEMBER_MOVES = """
SELECT moved.state_key, coalesce(c.membership, 'leave') = 'join'
FROM unnest($1::text[], $2::bigint[]) AS w (room_id, after)
CROSS JOIN LATERAL (
    SELECT DISTINCT h.state_key FROM rooms.state_history h
    WHERE h.room_id = w.room_id AND h.anchor > w.after AND h.type = 'm.room.member'
) moved
LEFT JOIN LATERAL (
    SELECT h.membership FROM rooms.state_history h
    WHERE h.room_id = w.room_id AND h.type = 'm.room.member' AND h.state_key = moved.state_key AND h.anchor <= w.after
    ORDER BY h.anchor DESC, h.sub DESC LIMIT 1
) before ON true
LEFT JOIN rooms.current_state c
    ON c.room_id = w.room_id AND c.type = 'm.room.member' AND c.state_key = moved.state_key
WHERE (coalesce(before.membership, 'leave') = 'join') <> (coalesce(c.membership, 'leave') = 'join')
"""


async def list_heroes(
    tx: Transaction, room_ids: Collection[RoomId], user_id: UserId | None
) -> dict[RoomId, list[UserId]]:
    """The first HERO_COUNT members of each room without the user; for no user one more, so that any may be left out.

    Spec: C-S API §Calculating the display name for a room.
    """
    found: dict[RoomId, list[UserId]] = {room_id: [] for room_id in room_ids}
    for row in await tx.fetch(_HEROES, list(room_ids), user_id or "", HERO_COUNT + (user_id is None)):
        found[row[0]].append(row[1])
    return found


async def list_joined_among(tx: Transaction, room_ids: Collection[RoomId], user_ids: Collection[UserId]) -> set[UserId]:
    """Those of the users who are joined to any of the rooms."""
    return {row[0] for row in await tx.fetch(_SHARED_ROOMS, list(room_ids), list(user_ids))}


async def list_rooms_of_users(tx: Transaction, user_ids: Collection[UserId]) -> list[tuple[UserId, RoomId]]:
    """(user, room) for each room of this shard that any of the users is joined to."""
    return [(row[0], row[1]) for row in await tx.fetch(_ROOMS_OF_USERS, list(user_ids))]


async def list_joined_users(tx: Transaction, room_ids: Collection[RoomId]) -> set[UserId]:
    """Everybody who is joined to any of the rooms."""
    return {row[0] for row in await tx.fetch(_MEMBERS_OF_ROOMS, list(room_ids))}


async def list_moved_members(tx: Transaction, after: Mapping[RoomId, int]) -> tuple[set[UserId], set[UserId]]:
    """(came, went): who joined or is no longer joined since each room's position; one may be both, in two rooms."""
    came: set[UserId] = set()
    went: set[UserId] = set()
    for user_id, is_joined in await tx.fetch(_MEMBER_MOVES, list(after), list(after.values())):
        (came if is_joined else went).add(user_id)
    return came, went
