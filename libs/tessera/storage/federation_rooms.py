"""What a room shard knows that other servers are sent: events' bytes, the servers of rooms, the newest of our events.

Spec: S-S API §PDUs.
"""

from collections.abc import Sequence

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from tessera.storage.database import Transaction

_LIST_PDUS = """
SELECT e.room_id, e.event_id, e.pdu
FROM unnest($1::text[], $2::text[]) AS q (room_id, event_id)
JOIN rooms.events e ON e.room_id = q.room_id AND e.event_id = q.event_id
"""

_LIST_SERVERS = """
SELECT room_id, server_name FROM rooms.room_servers
WHERE room_id = ANY($1::text[]) AND joined_count > 0 AND server_name <> $2
"""

_LIST_NEWEST = """
SELECT q.room_id, e.event_id
FROM unnest($1::text[]) AS q (room_id)
CROSS JOIN LATERAL (
    SELECT event_id FROM rooms.events
    WHERE room_id = q.room_id AND anchor IS NOT NULL AND $2 = ANY(servers)
      AND (forwarded OR right(sender, length($3) + 1) = ':' || $3)
    ORDER BY anchor DESC, sub DESC LIMIT 1
) e
"""

_LIST_SERVERS_OF_USERS = """
SELECT DISTINCT m.state_key, s.server_name
FROM rooms.current_state m
JOIN rooms.room_servers s ON s.room_id = m.room_id AND s.joined_count > 0
WHERE m.type = 'm.room.member' AND m.state_key = ANY($1::text[]) AND m.membership = 'join' AND s.server_name <> $2
"""


async def list_pdus(tx: Transaction, events: Sequence[tuple[RoomId, EventId]]) -> dict[tuple[RoomId, EventId], bytes]:
    """The exact bytes of events of this shard; those that are gone are absent."""
    rows = await tx.fetch(_LIST_PDUS, [one[0] for one in events], [one[1] for one in events])
    return {(row[0], row[1]): row[2] for row in rows}


async def list_servers(tx: Transaction, room_ids: Sequence[RoomId], own: ServerName) -> dict[RoomId, list[ServerName]]:
    """The other servers with joined users in rooms of this shard."""
    found: dict[RoomId, list[ServerName]] = {}
    for room_id, server in await tx.fetch(_LIST_SERVERS, list(room_ids), own):
        found.setdefault(room_id, []).append(server)
    return found


async def list_newest(
    tx: Transaction, room_ids: Sequence[RoomId], destination: ServerName, own: ServerName
) -> dict[RoomId, EventId]:
    """Of each room the newest event that this server owed the destination."""
    return dict(await tx.fetch(_LIST_NEWEST, list(room_ids), destination, own))


async def list_servers_of_users(
    tx: Transaction, user_ids: Sequence[UserId], own: ServerName
) -> dict[UserId, set[ServerName]]:
    """The other servers that have somebody in a room of this shard in which the user is."""
    found: dict[UserId, set[ServerName]] = {}
    for user_id, server in await tx.fetch(_LIST_SERVERS_OF_USERS, list(user_ids), own):
        found.setdefault(user_id, set()).add(server)
    return found
