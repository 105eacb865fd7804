"""What projections are rebuilt from: the rooms of a partition, page by page, as PostgreSQL has them now."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from tessera.storage.database import Transaction

# By room ID, so that a page costs what it holds; a partition has some thousands of rooms, not millions.
_LIST_ROOMS = """
SELECT room_id FROM rooms.rooms WHERE partition = $1 AND room_id > $2 ORDER BY room_id LIMIT $3
"""

_LIST_MEMBERS = """
SELECT s.room_id, s.state_key, coalesce(s.membership, 'leave'), s.event_id, e.sender, e.stripped_state
FROM rooms.current_state s JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = ANY($1::text[]) AND s.type = 'm.room.member' AND s.state_key LIKE '@%:' || $2
"""

_LIST_LISTED = """
SELECT user_id, room_id, membership, event_id, sender, incarnation, position FROM accounts.user_rooms
WHERE room_id = ANY($1::text[])
"""


class Member(NamedTuple):
    """A local user's membership in the current state of a room."""

    room_id: RoomId
    user_id: UserId
    membership: str
    event_id: EventId
    sender: UserId
    stripped_state: bytes | None


class Listed(NamedTuple):
    """The same as the account store has it."""

    user_id: UserId
    room_id: RoomId
    membership: str
    event_id: EventId
    sender: UserId
    incarnation: int
    position: int


async def list_rooms_of_partition(tx: Transaction, partition: int, after: str, limit: int) -> list[RoomId]:
    """The next rooms of a partition by ID; `after` is the last one of the page before, empty at first."""
    return [RoomId(row[0]) for row in await tx.fetch(_LIST_ROOMS, partition, after, limit)]


async def list_local_memberships(tx: Transaction, room_ids: Sequence[RoomId], server_name: ServerName) -> list[Member]:
    """The current memberships of this server's users in some rooms of one shard."""
    # The pattern's own characters are not in a server name, but for '_', which no server name has either.
    return [Member(*row) for row in await tx.fetch(_LIST_MEMBERS, list(room_ids), server_name)]


async def list_listed_memberships(tx: Transaction, room_ids: Sequence[RoomId]) -> list[Listed]:
    """What users' room lists say of these rooms; of the account store."""
    return [Listed(*row) for row in await tx.fetch(_LIST_LISTED, list(room_ids))]
