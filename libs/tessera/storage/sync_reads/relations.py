"""What relates to events of many rooms. Spec: C-S API §Aggregations of child events."""

from collections import defaultdict
from collections.abc import Sequence

from matrixcore.identifiers import EventId, RoomId
from tessera.storage.database import Transaction

_RELATIONS_TO = """
SELECT w.room_id, w.event_id, c.rel_type, c.sender
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events c ON c.room_id = w.room_id AND c.relates_to = w.event_id
WHERE c.rel_type IS NOT NULL AND c.redacted_by IS NULL AND c.anchor IS NOT NULL
"""


async def list_relations_to(
    tx: Transaction, events: Sequence[tuple[RoomId, EventId]]
) -> dict[tuple[RoomId, EventId], list[tuple[str, str]]]:
    """(rel_type, sender) of what relates to each of the events."""
    found: dict[tuple[RoomId, EventId], list[tuple[str, str]]] = defaultdict(list)
    for row in await tx.fetch(_RELATIONS_TO, [one[0] for one in events], [one[1] for one in events]):
        found[row[0], row[1]].append((row[2], row[3]))
    return found
