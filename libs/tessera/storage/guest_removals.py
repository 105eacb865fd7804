"""Rooms whose guests may be no longer welcome: written by the projector, worked off by the gateway.

Spec: C-S API §Guest Access.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction

# Longer than a join that is on its way can take to arrive.
GRACE_SECONDS = 60


class GuestRemoval(NamedTuple):
    """A room that is to be looked at."""

    room_id: RoomId
    revision: int


class JoinedGuest(NamedTuple):
    """A guest of this server, and the event of the join."""

    user_id: UserId
    event_id: EventId


_ADD = """
INSERT INTO accounts.guest_removals AS r (room_id, revision)
SELECT room_id, 1 FROM unnest($1::text[]) AS i (room_id) ORDER BY room_id
ON CONFLICT (room_id) DO UPDATE SET revision = r.revision + 1, owed_since = now()
"""

_LIST = "SELECT room_id, revision FROM accounts.guest_removals WHERE room_id > $1 ORDER BY room_id LIMIT $2"

_LIST_GUESTS = """
SELECT r.user_id, r.event_id FROM accounts.user_rooms r JOIN accounts.users u ON u.user_id = r.user_id AND u.is_guest
WHERE r.room_id = $1 AND r.membership = 'join' AND r.user_id > $2 ORDER BY r.user_id LIMIT $3
"""

_LIST_ROOMS = """
SELECT DISTINCT r.room_id FROM accounts.users u JOIN accounts.user_rooms r ON r.user_id = u.user_id
WHERE u.is_guest AND r.membership = 'join' AND r.partition = $1
"""

_SETTLE = f"""
DELETE FROM accounts.guest_removals
WHERE room_id = $1 AND revision = $2 AND owed_since < now() - interval '{GRACE_SECONDS} seconds'
"""  # noqa: S608  constant text


async def add_removals(tx: Transaction, room_ids: Sequence[RoomId]) -> None:
    """These rooms are to be looked at, for a while from now on."""
    await tx.execute(_ADD, list(room_ids))


async def list_removals(tx: Transaction, after: str = "", limit: int = 100) -> list[GuestRemoval]:
    """Rooms to look at, in the order of their IDs, after `after`."""
    return [GuestRemoval(*row) for row in await tx.fetch(_LIST, after, limit)]


async def list_guests(tx: Transaction, room_id: RoomId, after: str = "", limit: int = 100) -> list[JoinedGuest]:
    """This server's guests in a room, in the order of their IDs, after `after`."""
    return [JoinedGuest(*row) for row in await tx.fetch(_LIST_GUESTS, room_id, after, limit)]


async def list_rooms_with_guests(tx: Transaction, partition: int) -> list[RoomId]:
    """The rooms of a partition that guests of this server are joined to."""
    return [RoomId(row[0]) for row in await tx.fetch(_LIST_ROOMS, partition)]


async def settle_removal(tx: Transaction, removal: GuestRemoval) -> None:
    """The room has no unwelcome guest. Nothing happens within GRACE_SECONDS, or if the room changed again."""
    await tx.execute(_SETTLE, removal.room_id, removal.revision)
