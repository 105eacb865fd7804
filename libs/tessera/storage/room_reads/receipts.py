"""Receipts: what a receipt points at, and those that a room has."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction


class ReceiptTarget(NamedTuple):
    """What a receipt needs to know: the sender's membership, the room's size, the event's place.

    `order` is None while the event is not known here; `thread_root` is None for the main timeline.
    """

    membership: str | None
    joined_count: int
    order: OrderKey | None
    thread_root: EventId | None


class RoomReceipt(NamedTuple):
    """A public receipt as the room has it; thread_id '' for unthreaded."""

    receipt_type: str
    user_id: UserId
    thread_id: str
    event_id: EventId
    ts: int
    position: int


_TARGET = """
SELECT m.membership, r.joined_count, e.anchor, e.sub, e.thread_root
FROM rooms.rooms r
LEFT JOIN rooms.current_state m ON m.room_id = r.room_id AND m.type = 'm.room.member' AND m.state_key = $2
LEFT JOIN rooms.events e ON e.room_id = r.room_id AND e.event_id = $3 AND e.anchor IS NOT NULL
WHERE r.room_id = $1
"""

_PLACES = """
SELECT e.room_id, e.event_id, e.anchor, e.sub, e.thread_root
FROM unnest($1::text[], $2::text[]) wanted (room_id, event_id)
JOIN rooms.events e ON e.room_id = wanted.room_id AND e.event_id = wanted.event_id AND e.anchor IS NOT NULL
"""

_OF_ROOM = """
SELECT receipt_type, user_id, thread_id, event_id, ts, position FROM rooms.receipts
WHERE room_id = $1 ORDER BY position DESC LIMIT $2
"""


async def find_target(tx: Transaction, room_id: RoomId, user_id: UserId, event_id: EventId) -> ReceiptTarget | None:
    """What a receipt of the user for the event would mean; None if the room is not known here."""
    row = await tx.fetchrow(_TARGET, room_id, user_id, event_id)
    if row is None:
        return None
    return ReceiptTarget(row[0], row[1], None if row[2] is None else OrderKey(row[2], row[3]), row[4])


async def list_places(
    tx: Transaction, events: Sequence[tuple[RoomId, EventId]]
) -> dict[tuple[RoomId, EventId], tuple[OrderKey, EventId | None]]:
    """(order, thread root) of those of the events that have a place in their rooms."""
    rows = await tx.fetch(_PLACES, [room_id for room_id, _ in events], [event_id for _, event_id in events])
    return {(row[0], row[1]): (OrderKey(row[2], row[3]), row[4]) for row in rows}


async def list_room_receipts(tx: Transaction, room_id: RoomId, limit: int) -> list[RoomReceipt]:
    """The newest public receipts of a room, at most `limit`."""
    return [RoomReceipt(*row) for row in await tx.fetch(_OF_ROOM, room_id, limit)]
