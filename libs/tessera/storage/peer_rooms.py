"""What there is to know of rooms when another server sends to them or asks about them.

Spec: S-S API §Server Access Control Lists.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import RoomId, ServerName, UserId
from tessera.storage.database import Transaction

_LIST_ROOMS = """
SELECT r.room_id, r.partition, r.room_version, coalesce(own.joined_count, 0) > 0, coalesce(peer.joined_count, 0) > 0,
       acl.pdu, (
           SELECT count(*) FROM (
               SELECT FROM rooms.inbox i WHERE i.room_id = r.room_id AND i.origin = $3 AND i.state <> 'dead' LIMIT $4
           ) AS lying
       )
FROM rooms.rooms r
LEFT JOIN rooms.room_servers own ON own.room_id = r.room_id AND own.server_name = $2
LEFT JOIN rooms.room_servers peer ON peer.room_id = r.room_id AND peer.server_name = $3
LEFT JOIN rooms.current_state s ON s.room_id = r.room_id AND s.type = 'm.room.server_acl' AND s.state_key = ''
LEFT JOIN rooms.events acl ON acl.room_id = s.room_id AND acl.event_id = s.event_id
WHERE r.room_id = ANY($1::text[])
UNION ALL
SELECT j.room_id, j.partition, j.room_version, true, false, NULL, (
           SELECT count(*) FROM (
               SELECT FROM rooms.inbox i WHERE i.room_id = j.room_id AND i.origin = $3 AND i.state <> 'dead' LIMIT $4
           ) AS lying
       )
FROM rooms.joins j WHERE j.room_id = ANY($1::text[]) AND j.state IN ('sending', 'staged')
"""

_LIST_SCATTERED = "SELECT room_id FROM rooms.rooms WHERE cardinality(forward_extremities) > $1 LIMIT $2"
_COUNT_EXTREMITIES = "SELECT cardinality(forward_extremities) FROM rooms.rooms WHERE room_id = $1"
# Who has been in the room for longest is likeliest to be allowed to send.
_LIST_SENDERS = """
SELECT state_key FROM rooms.current_state
WHERE room_id = $1 AND type = 'm.room.member' AND membership = 'join'
  AND right(state_key, length($2) + 1) = ':' || $2
ORDER BY anchor, sub LIMIT $3
"""

# Who has just let us in is there, and knows the room; else whoever has most users in it likely does.
_LIST_SERVERS = """
SELECT server_name FROM rooms.room_servers WHERE room_id = $1 AND server_name <> $2 AND joined_count > 0
ORDER BY server_name IN (SELECT servers[1] FROM rooms.joins WHERE room_id = $1 AND state = 'done') DESC,
         joined_count DESC, server_name LIMIT $3
"""


class PeerRoom(NamedTuple):
    """A room as it concerns one peer.

    Attributes:
        is_joined: whether this server has joined users in it, or is about to: then what comes waits in the inbox.
        has_peer: whether the peer has.
        acl: the content of its m.room.server_acl; None if it has none.
        waiting: how many PDUs of this peer lie in the inbox, counted up to a limit.
    """

    room_id: RoomId
    partition: int
    room_version: str
    is_joined: bool
    has_peer: bool
    acl: dict[str, Any] | None
    waiting: int


async def list_peer_rooms(
    tx: Transaction, room_ids: Sequence[RoomId], own: ServerName, peer: ServerName, *, waiting_limit: int = 1
) -> dict[RoomId, PeerRoom]:
    """Those of the rooms that are known here."""
    found: dict[RoomId, PeerRoom] = {}
    # The row of a join under way comes after that of the room as it was before.
    for row in await tx.fetch(_LIST_ROOMS, list(room_ids), own, peer, waiting_limit):
        room_id, partition, version, is_joined, has_peer, acl, waiting = row
        content = None if acl is None else orjson.loads(acl)["content"]
        found[room_id] = PeerRoom(room_id, partition, version, is_joined, has_peer, content, waiting)
    return found


async def list_servers(tx: Transaction, room_id: RoomId, own: ServerName, limit: int) -> list[ServerName]:
    """The other servers with joined users, the likeliest to answer about the room first."""
    return [ServerName(row[0]) for row in await tx.fetch(_LIST_SERVERS, room_id, own, limit)]


async def list_scattered_rooms(tx: Transaction, above: int, limit: int) -> list[RoomId]:
    """Rooms with more forward extremities than this."""
    return [RoomId(row[0]) for row in await tx.fetch(_LIST_SCATTERED, above, limit)]


async def count_extremities(tx: Transaction, room_id: RoomId) -> int:
    """How many forward extremities a room has."""
    return int(await tx.fetchval(_COUNT_EXTREMITIES, room_id) or 0)


async def list_senders(tx: Transaction, room_id: RoomId, own: ServerName, limit: int) -> list[UserId]:
    """Joined users of a server, those who came first."""
    return [UserId(row[0]) for row in await tx.fetch(_LIST_SENDERS, room_id, own, limit)]
