"""What application services are judged by and told: local members of rooms, and events with their room versions.

All but `list_aliases` read a room shard.

Spec: Application Service API §Registration, §Pushing events.
"""

from collections import defaultdict
from collections.abc import Sequence

from matrixcore.identifiers import EventId, RoomAlias, RoomId, ServerName, UserId
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow

MAX_ROOMS_OF_USER = 1_000  # looked at for the presence of one user

_MEMBERS_AT = """
SELECT w.room_id, m.state_key
FROM unnest($1::text[], $2::bigint[]) AS w (room_id, position)
CROSS JOIN LATERAL (
    SELECT DISTINCT ON (h.state_key) h.state_key, h.membership FROM rooms.state_history h
    WHERE h.room_id = w.room_id AND h.type = 'm.room.member' AND h.anchor <= w.position
      AND right(h.state_key, length($3)) = $3
    ORDER BY h.state_key, h.anchor DESC, h.sub DESC
) m
WHERE m.membership = 'join'
"""

_MEMBERS_NOW = """
SELECT c.room_id, c.state_key FROM rooms.current_state c
WHERE c.room_id = ANY($1::text[]) AND c.type = 'm.room.member' AND c.membership = 'join'
  AND right(c.state_key, length($2)) = $2
"""

_ROOMS_OF_USERS = """
SELECT q.user_id, r.room_id
FROM unnest($1::text[]) AS q (user_id)
CROSS JOIN LATERAL (
    SELECT c.room_id FROM rooms.current_state c
    WHERE c.state_key = q.user_id AND c.type = 'm.room.member' AND c.membership = 'join' LIMIT $2
) r
"""

# Constant text is put together here; values are always parameters.
_EVENTS = f"""
SELECT e.room_id, r.room_version, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
JOIN rooms.rooms r ON r.room_id = e.room_id
WHERE e.rejected IS NULL AND e.soft_failed IS NULL
"""  # noqa: S608  constant text

_ALIASES = "SELECT room_id, alias FROM accounts.aliases WHERE room_id = ANY($1::text[]) AND state = 'bound'"


async def list_local_members_at(
    tx: Transaction, places: Sequence[tuple[RoomId, int]], server_name: ServerName
) -> dict[RoomId, list[UserId]]:
    """The joined users of this server in some rooms, in each as it was right after a position of its partition."""
    found: dict[RoomId, list[UserId]] = defaultdict(list)
    rooms, positions = [place[0] for place in places], [place[1] for place in places]
    for room_id, user_id in await tx.fetch(_MEMBERS_AT, rooms, positions, f":{server_name}"):
        found[room_id].append(user_id)
    return found


async def list_local_members(
    tx: Transaction, room_ids: Sequence[RoomId], server_name: ServerName
) -> dict[RoomId, list[UserId]]:
    """The same as it is now."""
    found: dict[RoomId, list[UserId]] = defaultdict(list)
    for room_id, user_id in await tx.fetch(_MEMBERS_NOW, list(room_ids), f":{server_name}"):
        found[room_id].append(user_id)
    return found


async def list_rooms_of_users(tx: Transaction, user_ids: Sequence[UserId]) -> dict[UserId, list[RoomId]]:
    """Rooms of this shard that users are joined to, of any server; at most MAX_ROOMS_OF_USER each."""
    found: dict[UserId, list[RoomId]] = defaultdict(list)
    for user_id, room_id in await tx.fetch(_ROOMS_OF_USERS, list(user_ids), MAX_ROOMS_OF_USER):
        found[user_id].append(room_id)
    return found


async def list_events(
    tx: Transaction, events: Sequence[tuple[RoomId, EventId]]
) -> dict[tuple[RoomId, EventId], tuple[str, EventRow]]:
    """(room version, event) of those that are there and neither rejected nor soft-failed."""
    rows = await tx.fetch(_EVENTS, [one[0] for one in events], [one[1] for one in events])
    return {(row[0], row[2]): (row[1], EventRow._make(row[2:])) for row in rows}


async def list_aliases(tx: Transaction, room_ids: Sequence[RoomId]) -> dict[RoomId, list[RoomAlias]]:
    """The local aliases of some rooms, from the account store."""
    found: dict[RoomId, list[RoomAlias]] = defaultdict(list)
    for room_id, alias in await tx.fetch(_ALIASES, list(room_ids)):
        found[room_id].append(alias)
    return found
