"""What the writer asks about the PDUs of a whole batch: one statement for each question, whatever the number of rooms.

Spec: none; DESIGN.md section 3.
"""

from collections.abc import Collection, Sequence

from matrixcore.identifiers import EventId, RoomId
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.inbox import InboxRow
from tessera.storage.state_loading import EventPlace, decode_delta, just_below

Named = tuple[RoomId, EventId]

_LOAD_INBOX = f"""
SELECT room_id, {", ".join(InboxRow._fields)} FROM rooms.inbox WHERE inbox_id = ANY($1::bigint[]) AND state <> 'dead'
"""  # noqa: S608  constant text

_FIND_PLACES = """
SELECT e.room_id, e.event_id, e.anchor, e.sub, e.outlier, e.rejected IS NOT NULL, e.type, e.state_key,
       f.base_anchor, f.base_sub, f.delta, CASE WHEN e.anchor IS NULL AND NOT e.outlier THEN e.pdu END
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
LEFT JOIN rooms.forked_states f ON f.room_id = e.room_id AND f.event_id = e.event_id
"""

_LOAD_EVENTS = """
SELECT e.room_id, e.event_id, e.pdu, e.rejected IS NOT NULL
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
"""

_LIST_BROKEN = "SELECT DISTINCT room_id FROM rooms.backward_extremities WHERE room_id = ANY($1::text[])"

_LIST_AWAITED = """
SELECT w.room_id, w.event_id FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
WHERE EXISTS (SELECT FROM rooms.events e WHERE e.room_id = w.room_id AND e.redacts = w.event_id)
   OR EXISTS (SELECT FROM rooms.missing_events m WHERE m.room_id = w.room_id AND m.missing_event_id = w.event_id)
"""


async def load_inbox(tx: Transaction, inbox_ids: Collection[int]) -> list[tuple[RoomId, InboxRow]]:
    """Those of the rows that are there and alive."""
    return [(RoomId(row[0]), InboxRow(*row[1:])) for row in await tx.fetch(_LOAD_INBOX, list(inbox_ids))]


async def find_places(tx: Transaction, named: Collection[Named]) -> dict[Named, EventPlace]:
    """The places of those of the events that are stored."""
    places: dict[Named, EventPlace] = {}
    for row in await tx.fetch(_FIND_PLACES, *_columns(named)):
        room_id, event_id, anchor, sub, outlier, rejected, event_type, state_key, *fork, pdu = row
        base_anchor, base_sub, delta = fork
        order = None if anchor is None else OrderKey(anchor, sub)
        if base_anchor is not None:
            base = OrderKey(base_anchor, base_sub)
        else:
            base = OrderKey(0) if order is None else just_below(order)
        key = None if state_key is None else (event_type, state_key)
        changes = {} if delta is None else decode_delta(delta)
        places[room_id, event_id] = EventPlace(event_id, order, outlier, rejected, key, base, changes, pdu)
    return places


async def load_events(tx: Transaction, named: Collection[Named]) -> dict[Named, tuple[bytes, bool]]:
    """(PDU, whether it was rejected) of those of the events that are stored, outliers too."""
    return {(row[0], row[1]): (row[2], row[3]) for row in await tx.fetch(_LOAD_EVENTS, *_columns(named))}


async def list_awaited(tx: Transaction, named: Collection[Named]) -> set[Named]:
    """Those of the events, stored or not, that an event redacts or that a parked PDU waits for."""
    return {(row[0], row[1]) for row in await tx.fetch(_LIST_AWAITED, *_columns(named))}


async def list_broken(tx: Transaction, room_ids: Collection[RoomId]) -> set[RoomId]:
    """Those of the rooms whose history breaks off anywhere."""
    return {RoomId(row[0]) for row in await tx.fetch(_LIST_BROKEN, list(room_ids))}


def _columns(named: Collection[Named]) -> tuple[Sequence[str], Sequence[str]]:
    return [pair[0] for pair in named], [pair[1] for pair in named]
