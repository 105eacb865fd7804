"""What relates to events of many rooms. Spec: C-S API §Aggregations of child events."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow
from tessera.storage.room_reads.relations import MAX_BUNDLED_REFERENCES, Bundle

_RELATIONS_TO = """
SELECT w.room_id, w.event_id, c.rel_type, c.sender
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events c ON c.room_id = w.room_id AND c.relates_to = w.event_id
WHERE c.rel_type IS NOT NULL AND c.redacted_by IS NULL AND c.anchor IS NOT NULL
"""

_HAVE_BUNDLES = """
SELECT w.room_id, w.event_id, c.rel_type, array_agg(c.event_id ORDER BY c.anchor, c.sub),
       bool_or(c.sender = $4)
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w (room_id, event_id, up_to)
JOIN rooms.events c ON c.room_id = w.room_id AND c.relates_to = w.event_id AND c.anchor <= w.up_to
WHERE c.rel_type IN ('m.replace', 'm.reference', 'm.thread') AND c.redacted_by IS NULL
GROUP BY w.room_id, w.event_id, c.rel_type
"""

# The newest valid edit by time: same sender and type as its target, neither being state.
_EDITS = f"""
SELECT DISTINCT ON (e.room_id, e.relates_to) e.room_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events original ON original.room_id = w.room_id AND original.event_id = w.event_id
JOIN rooms.events e ON e.room_id = w.room_id AND e.relates_to = w.event_id AND e.rel_type = 'm.replace'
WHERE e.state_key IS NULL AND e.redacted_by IS NULL AND e.anchor IS NOT NULL AND original.redacted_by IS NULL
  AND original.state_key IS NULL AND original.rel_type IS DISTINCT FROM 'm.replace'
  AND e.sender = original.sender AND e.type = original.type
ORDER BY e.room_id, e.relates_to, e.origin_server_ts DESC, e.event_id DESC
"""  # noqa: S608

_EVENTS = f"""
SELECT e.room_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
"""  # noqa: S608


async def list_relations_to(
    tx: Transaction, events: Sequence[tuple[RoomId, EventId]]
) -> dict[tuple[RoomId, EventId], list[tuple[str, str]]]:
    """(rel_type, sender) of what relates to each of the events."""
    found: dict[tuple[RoomId, EventId], list[tuple[str, str]]] = defaultdict(list)
    for row in await tx.fetch(_RELATIONS_TO, [one[0] for one in events], [one[1] for one in events]):
        found[row[0], row[1]].append((row[2], row[3]))
    return found


async def list_room_bundles(
    tx: Transaction, events: Mapping[RoomId, tuple[int, Sequence[EventId]]], reader: UserId
) -> dict[RoomId, dict[EventId, Bundle]]:
    """What is to be bundled with events of many rooms: one statement where nothing relates to them, else three.

    Args:
        events: room -> (anchor of the last event that the reader may see, events).
    """
    asked = [(room_id, event_id, up_to) for room_id, (up_to, ids) in events.items() for event_id in ids]
    bundles: dict[RoomId, dict[EventId, Bundle]] = defaultdict(dict)
    edited: list[tuple[RoomId, EventId]] = []
    latest: dict[tuple[RoomId, EventId], Bundle] = {}
    columns = [list(column) for column in zip(*asked, strict=True)]
    for room_id, event_id, rel_type, children, participated in await tx.fetch(_HAVE_BUNDLES, *columns, reader):
        bundle = bundles[room_id].setdefault(event_id, Bundle())
        if rel_type == "m.reference":
            bundle.references = list(children[:MAX_BUNDLED_REFERENCES])
        elif rel_type == "m.thread":
            bundle.thread_count, bundle.participated = len(children), participated
            latest[room_id, children[-1]] = bundle
            edited.append((room_id, children[-1]))
        else:
            edited.append((room_id, event_id))
    if latest:
        for row in await tx.fetch(_EVENTS, [key[0] for key in latest], [key[1] for key in latest]):
            latest[row[0], row[1]].thread_latest = EventRow._make(row[1:])
    if edited:
        for row in await tx.fetch(_EDITS, [one[0] for one in edited], [one[1] for one in edited]):
            edit = EventRow._make(row[1:])
            if edit.relates_to is not None:
                bundles[row[0]].setdefault(edit.relates_to, Bundle()).edit = edit
    return bundles
