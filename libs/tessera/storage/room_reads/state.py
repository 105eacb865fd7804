"""The state of a room: now, and at any point of its order."""

from collections.abc import Sequence

from matrixcore.identifiers import RoomId, StateKey
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow

# Constant text is put together here; values are always parameters.
_CURRENT = f"""
SELECT {EVENT_COLUMNS} FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = $1
"""  # noqa: S608  constant text

_CURRENT_OF_TYPES = f"{_CURRENT} AND s.type = ANY($2::text[])"

_CURRENT_KEYS = f"""
SELECT {EVENT_COLUMNS} FROM unnest($2::text[], $3::text[]) wanted (type, state_key)
JOIN rooms.current_state s ON s.room_id = $1 AND s.type = wanted.type AND s.state_key = wanted.state_key
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
"""  # noqa: S608  constant text

# One row for each key: the newest at or below the point. A NULL event means that a resolution removed the key.
_AT = f"""
SELECT {EVENT_COLUMNS} FROM (
    SELECT DISTINCT ON (type, state_key) room_id, event_id FROM rooms.state_history
    WHERE room_id = $1 AND (anchor, sub) <= ($2, $3) {{of_types}}
    ORDER BY type, state_key, anchor DESC, sub DESC
) s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
"""  # noqa: S608  constant text
_ALL_AT = _AT.format(of_types="")
_TYPES_AT = _AT.format(of_types="AND type = ANY($4::text[])")

_KEYS_AT = f"""
SELECT {EVENT_COLUMNS} FROM unnest($4::text[], $5::text[]) wanted (type, state_key)
CROSS JOIN LATERAL (
    SELECT h.event_id FROM rooms.state_history h
    WHERE h.room_id = $1 AND h.type = wanted.type AND h.state_key = wanted.state_key AND (h.anchor, h.sub) <= ($2, $3)
    ORDER BY h.anchor DESC, h.sub DESC LIMIT 1
) s
JOIN rooms.events e ON e.room_id = $1 AND e.event_id = s.event_id
"""  # noqa: S608  constant text


async def list_state(
    tx: Transaction, room_id: RoomId, *, at: OrderKey | None = None, types: Sequence[str] | None = None
) -> list[EventRow]:
    """The whole state, or that of some types, in no order.

    Args:
        at: a point of the room's order; None for the current state.
    """
    if types is None:
        rows = await (tx.fetch(_CURRENT, room_id) if at is None else tx.fetch(_ALL_AT, room_id, *at))
    elif at is None:
        rows = await tx.fetch(_CURRENT_OF_TYPES, room_id, list(types))
    else:
        rows = await tx.fetch(_TYPES_AT, room_id, *at, list(types))
    return [EventRow._make(row) for row in rows]


async def list_state_keys(
    tx: Transaction, room_id: RoomId, keys: Sequence[StateKey], *, at: OrderKey | None = None
) -> dict[StateKey, EventRow]:
    """Some state events by (type, state key); missing ones are left out."""
    types, state_keys = [key[0] for key in keys], [key[1] for key in keys]
    if at is None:
        rows = await tx.fetch(_CURRENT_KEYS, room_id, types, state_keys)
    else:
        rows = await tx.fetch(_KEYS_AT, room_id, at.anchor, at.sub, types, state_keys)
    found = (EventRow(*row) for row in rows)
    return {(event.type, event.state_key or ""): event for event in found}


async def find_state(
    tx: Transaction, room_id: RoomId, event_type: str, state_key: str, *, at: OrderKey | None = None
) -> EventRow | None:
    """One state event, None if there is none."""
    return (await list_state_keys(tx, room_id, [(event_type, state_key)], at=at)).get((event_type, state_key))
