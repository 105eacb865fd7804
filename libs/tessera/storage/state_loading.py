"""States of a room's past, for events that fork it: full maps, asked for only there.

The state before an event is the room's state in its order just below the event, unless a row of
`forked_states` says by what it differs from the state at another place.

Spec: none; DESIGN.md section 4.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import orjson

from matrixcore.identifiers import EventId, RoomId, StateKey
from tessera.records import OrderKey
from tessera.storage.database import Transaction

StateDelta = Mapping[StateKey, EventId | None]

_FIND_PLACES = """
SELECT e.event_id, e.anchor, e.sub, e.outlier, e.rejected IS NOT NULL, e.type, e.state_key,
       f.base_anchor, f.base_sub, f.delta, CASE WHEN e.anchor IS NULL AND NOT e.outlier THEN e.pdu END
FROM rooms.events e
LEFT JOIN rooms.forked_states f ON f.room_id = e.room_id AND f.event_id = e.event_id
WHERE e.room_id = $1 AND e.event_id = ANY($2::text[])
"""

_LIST_FOLLOWED = """
SELECT DISTINCT d.prev_event_id FROM rooms.event_edges d
JOIN rooms.events e ON e.room_id = d.room_id AND e.event_id = d.event_id AND e.anchor IS NOT NULL
WHERE d.room_id = $1 AND d.prev_event_id = ANY($2::text[])
"""

_LOAD_EVENTS = """
SELECT event_id, pdu, rejected IS NOT NULL FROM rooms.events WHERE room_id = $1 AND event_id = ANY($2::text[])
"""

_LOAD_STATE_AT = """
SELECT type, state_key, event_id FROM (
    SELECT DISTINCT ON (type, state_key) type, state_key, event_id FROM rooms.state_history
    WHERE room_id = $1 AND (anchor, sub) <= ($2, $3)
    ORDER BY type, state_key, anchor DESC, sub DESC
) newest WHERE event_id IS NOT NULL
"""

# For each place the keys that have changed above it: what they had there, and what they have now.
_LOAD_CHANGED_SINCE = """
SELECT w.number, changed.type, changed.state_key, there.event_id, now.event_id
FROM unnest($2::bigint[], $3::integer[]) WITH ORDINALITY AS w (anchor, sub, number)
CROSS JOIN LATERAL (
    SELECT DISTINCT h.type, h.state_key FROM rooms.state_history h
    WHERE h.room_id = $1 AND (h.anchor, h.sub) > (w.anchor, w.sub)
) changed
LEFT JOIN LATERAL (
    SELECT h.event_id FROM rooms.state_history h
    WHERE h.room_id = $1 AND h.type = changed.type AND h.state_key = changed.state_key
      AND (h.anchor, h.sub) <= (w.anchor, w.sub)
    ORDER BY h.anchor DESC, h.sub DESC LIMIT 1
) there ON true
LEFT JOIN rooms.current_state now
    ON now.room_id = $1 AND now.type = changed.type AND now.state_key = changed.state_key
"""

_FIND_CURRENT = """
SELECT w.type, w.state_key, s.event_id
FROM unnest($2::text[], $3::text[]) AS w (type, state_key)
JOIN rooms.current_state s ON s.room_id = $1 AND s.type = w.type AND s.state_key = w.state_key
"""

_LOAD_CURRENT = "SELECT type, state_key, event_id FROM rooms.current_state WHERE room_id = $1"

_LIST_REDACTIONS = """
SELECT event_id, pdu FROM rooms.events
WHERE room_id = $1 AND redacts = ANY($2::text[]) AND NOT outlier AND rejected IS NULL AND soft_failed IS NULL
ORDER BY depth, event_id LIMIT $3
"""


class EventPlace(NamedTuple):
    """Where an event stands and what its state is measured against.

    Attributes:
        order: None for events without a place.
        base: the state before the event is that of the room up to and with `base`, changed by `delta`.
        pdu: of an event of the DAG that has no place.
    """

    event_id: EventId
    order: OrderKey | None
    is_outlier: bool
    is_rejected: bool
    state_key: StateKey | None
    base: OrderKey
    delta: StateDelta
    pdu: bytes | None


def encode_delta(delta: StateDelta) -> bytes:
    """The stored form of a difference of states."""
    return orjson.dumps([[*key, event_id] for key, event_id in delta.items()])


def decode_delta(data: bytes) -> dict[StateKey, EventId | None]:
    """The inverse of encode_delta."""
    return {(event_type, state_key): event_id for event_type, state_key, event_id in orjson.loads(data)}


def just_below(order: OrderKey) -> OrderKey:
    """The greatest key below another, as far as state is concerned."""
    return OrderKey(order.anchor, order.sub - 1)


async def find_places(tx: Transaction, room_id: RoomId, event_ids: Sequence[EventId]) -> dict[EventId, EventPlace]:
    """The places of those of the events that are stored."""
    places: dict[EventId, EventPlace] = {}
    for row in await tx.fetch(_FIND_PLACES, room_id, list(event_ids)):
        event_id, anchor, sub, outlier, rejected, event_type, state_key, base_anchor, base_sub, delta, pdu = row
        order = None if anchor is None else OrderKey(anchor, sub)
        if base_anchor is not None:
            base = OrderKey(base_anchor, base_sub)
        else:
            base = OrderKey(0) if order is None else just_below(order)
        key = None if state_key is None else (event_type, state_key)
        changes = {} if delta is None else decode_delta(delta)
        places[event_id] = EventPlace(event_id, order, outlier, rejected, key, base, changes, pdu)
    return places


async def list_followed(tx: Transaction, room_id: RoomId, event_ids: Collection[EventId]) -> set[EventId]:
    """Those of the events, stored or not, that an event of the room's history has among its prev events."""
    return {EventId(row[0]) for row in await tx.fetch(_LIST_FOLLOWED, room_id, list(event_ids))}


async def load_events(
    tx: Transaction, room_id: RoomId, event_ids: Sequence[EventId]
) -> dict[EventId, tuple[bytes, bool]]:
    """(PDU, whether it was rejected) of those of the events that are stored, outliers too."""
    return {row[0]: (row[1], row[2]) for row in await tx.fetch(_LOAD_EVENTS, room_id, list(event_ids))}


async def load_state_at(tx: Transaction, room_id: RoomId, order: OrderKey) -> dict[StateKey, EventId]:
    """The room's state up to and with a place in its order."""
    return {(row[0], row[1]): row[2] for row in await tx.fetch(_LOAD_STATE_AT, room_id, *order)}


async def load_changed_since(
    tx: Transaction, room_id: RoomId, orders: Sequence[OrderKey]
) -> list[dict[StateKey, tuple[EventId | None, EventId | None]]]:
    """For each place in the room's order: key -> (what the room had there, what it has now).

    Only keys that have been set since; they may have been set to the same again.
    """
    changed: list[dict[StateKey, tuple[EventId | None, EventId | None]]] = [{} for _ in orders]
    anchors, subs = [order.anchor for order in orders], [order.sub for order in orders]
    for number, event_type, state_key, there, now in await tx.fetch(_LOAD_CHANGED_SINCE, room_id, anchors, subs):
        changed[number - 1][event_type, state_key] = (there, now)
    return changed


async def find_current(tx: Transaction, room_id: RoomId, keys: Collection[StateKey]) -> dict[StateKey, EventId]:
    """What current state has under those of the keys that it has."""
    rows = await tx.fetch(_FIND_CURRENT, room_id, [key[0] for key in keys], [key[1] for key in keys])
    return {(row[0], row[1]): row[2] for row in rows}


async def load_current_state(tx: Transaction, room_id: RoomId) -> dict[StateKey, EventId]:
    """The whole current state."""
    return {(row[0], row[1]): row[2] for row in await tx.fetch(_LOAD_CURRENT, room_id)}


async def list_redactions(
    tx: Transaction, room_id: RoomId, event_ids: Sequence[EventId], limit: int
) -> dict[EventId, bytes]:
    """The PDUs of accepted redactions that name one of the events, the oldest first."""
    return {row[0]: row[1] for row in await tx.fetch(_LIST_REDACTIONS, room_id, list(event_ids), limit)}
