"""Rooms that closed accounts still have to leave: written with the closing, struck out when all is done.

Spec: C-S API §Account deactivation.
"""

from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction

# Longer than a session is remembered (5 s) and a command is waited for (20 s) together.
GRACE_SECONDS = 60


class Departure(NamedTuple):
    """A user who is to leave all rooms; the seed is what the ids of the commands are made of."""

    user_id: UserId
    seed: bytes


class RoomToLeave(NamedTuple):
    """A room and the event that put the user into it."""

    room_id: RoomId
    event_id: EventId


_ADD = "INSERT INTO accounts.departures (user_id, seed) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING"

_LIST = "SELECT user_id, seed FROM accounts.departures WHERE user_id > $1 ORDER BY user_id LIMIT $2"

_LIST_ROOMS = """
SELECT room_id, event_id FROM accounts.user_rooms
WHERE user_id = $1 AND membership IN ('join', 'invite', 'knock') AND room_id > $2 ORDER BY room_id LIMIT $3
"""

_SETTLE = f"""
DELETE FROM accounts.departures
WHERE user_id = $1 AND seed = $2 AND owed_since < now() - interval '{GRACE_SECONDS} seconds'
"""  # noqa: S608  constant text


async def add_departure(tx: Transaction, user_id: UserId, seed: bytes) -> None:
    """The user is to leave all rooms; nothing happens if that is owed already."""
    await tx.execute(_ADD, user_id, seed)


async def list_departures(tx: Transaction, after: str = "", limit: int = 100) -> list[Departure]:
    """Users who have rooms to leave, in the order of their IDs, after `after`."""
    return [Departure(*row) for row in await tx.fetch(_LIST, after, limit)]


async def list_rooms_to_leave(tx: Transaction, user_id: UserId, after: str = "", limit: int = 100) -> list[RoomToLeave]:
    """Rooms that the user is joined or invited to or knocks at, in the order of their IDs, after `after`."""
    return [RoomToLeave(*row) for row in await tx.fetch(_LIST_ROOMS, user_id, after, limit)]


async def settle_departure(tx: Transaction, departure: Departure) -> None:
    """The user has left everything. Nothing happens within GRACE_SECONDS: a late join may still come."""
    await tx.execute(_SETTLE, departure.user_id, departure.seed)
