"""Where a room's history here breaks off: placed events with prev events that are not here.

The writer keeps the rows with the events (`writer_batch`, sections backward and backward_gone).

Spec: S-S API §Backfilling and retrieving missing events.
"""

from collections.abc import Sequence

from matrixcore.identifiers import EventId, RoomId
from tessera.records import OrderKey
from tessera.storage.database import Transaction

_LIST_OF_ANCHORS = """
SELECT event_id, anchor, sub FROM rooms.backward_extremities WHERE room_id = $1 AND anchor = ANY($2::bigint[])
"""
_FIND_BELOW = """
SELECT event_id, anchor, sub FROM rooms.backward_extremities
WHERE room_id = $1 AND (anchor, sub) >= ($2, $3) AND (anchor, sub) <= ($4, $5)
ORDER BY anchor DESC, sub DESC LIMIT $6
"""
_HAS_ANY = "SELECT EXISTS (SELECT FROM rooms.backward_extremities WHERE room_id = $1)"
_LOWEST_SUBS = """
SELECT wanted.anchor, coalesce(min(e.sub), 0) FROM unnest($2::bigint[]) AS wanted (anchor)
LEFT JOIN rooms.events e ON e.room_id = $1 AND e.anchor = wanted.anchor
GROUP BY wanted.anchor
"""


async def list_of_anchors(tx: Transaction, room_id: RoomId, anchors: Sequence[int]) -> dict[EventId, OrderKey]:
    """Those at or below live events: event -> its place."""
    rows = await tx.fetch(_LIST_OF_ANCHORS, room_id, list(anchors)) if anchors else []
    return {EventId(row[0]): OrderKey(row[1], row[2]) for row in rows}


async def list_between(
    tx: Transaction, room_id: RoomId, low: OrderKey, high: OrderKey, limit: int
) -> dict[EventId, OrderKey]:
    """Those in a stretch of the room's order, both ends included, the newest first."""
    rows = await tx.fetch(_FIND_BELOW, room_id, *low, *high, limit)
    return {EventId(row[0]): OrderKey(row[1], row[2]) for row in rows}


async def has_any(tx: Transaction, room_id: RoomId) -> bool:
    """Whether the room's history breaks off anywhere."""
    return bool(await tx.fetchval(_HAS_ANY, room_id))


async def find_lowest_subs(tx: Transaction, room_id: RoomId, anchors: Sequence[int]) -> dict[int, int]:
    """For each live position the lowest place that is taken below it, 0 if there is none."""
    return {row[0]: row[1] for row in await tx.fetch(_LOWEST_SUBS, room_id, list(anchors))}
