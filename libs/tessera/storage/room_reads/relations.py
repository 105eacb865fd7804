"""Events that relate to others: what is bundled with an event, and pages of its children.

Spec: C-S API §Aggregations of child events, §Relationships API.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, HIGHEST, LOWEST, EventRow

MAX_BUNDLED_REFERENCES = 100


@dataclass(slots=True)
class Bundle:
    """What is aggregated at one event."""

    edit: EventRow | None = None
    references: list[EventId] = field(default_factory=list)
    thread_latest: EventRow | None = None
    thread_count: int = 0
    participated: bool = False


# Constant text is put together here; values are always parameters. ($3, $4): the reader sees nothing above.
# An edit is by the same sender, of the same type, and of no state event; the newest by time counts.
_EDITS = f"""
SELECT DISTINCT ON (e.relates_to) {EVENT_COLUMNS}
FROM rooms.events e
JOIN rooms.events original ON original.room_id = e.room_id AND original.event_id = e.relates_to
WHERE e.room_id = $1 AND e.relates_to = ANY($2::text[]) AND e.rel_type = 'm.replace' AND e.state_key IS NULL
  AND (e.anchor, e.sub) <= ($3, $4) AND e.redacted_by IS NULL AND original.redacted_by IS NULL
  AND original.state_key IS NULL AND original.rel_type IS DISTINCT FROM 'm.replace'
  AND e.sender = original.sender AND e.type = original.type
ORDER BY e.relates_to, e.origin_server_ts DESC, e.event_id DESC
"""  # noqa: S608

_HAVE_RELATIONS = """
SELECT relates_to, rel_type, (array_agg(event_id ORDER BY anchor, sub) FILTER (WHERE rel_type = 'm.reference'))
FROM rooms.events
WHERE room_id = $1 AND relates_to = ANY($2::text[]) AND rel_type IN ('m.replace', 'm.reference', 'm.thread')
  AND (anchor, sub) <= ($3, $4) AND redacted_by IS NULL
GROUP BY relates_to, rel_type
"""

# The counts are of what the reader may see of the thread; $5 is the reader.
_THREADS = f"""
SELECT t.thread_root, t.replies, t.participated, {EVENT_COLUMNS}
FROM (
    SELECT thread_root, count(*) AS replies, bool_or(sender = $5) AS participated,
           max(anchor) AS last_anchor
    FROM rooms.events
    WHERE room_id = $1 AND thread_root = ANY($2::text[]) AND relates_to = thread_root AND rel_type = 'm.thread'
      AND (anchor, sub) <= ($3, $4) AND redacted_by IS NULL
    GROUP BY thread_root
) t
JOIN LATERAL (
    SELECT * FROM rooms.events l
    WHERE l.room_id = $1 AND l.thread_root = t.thread_root AND l.anchor = t.last_anchor AND l.rel_type = 'm.thread'
      AND l.redacted_by IS NULL
    ORDER BY l.sub DESC LIMIT 1
) e ON true
"""  # noqa: S608

_CHILDREN = """
SELECT {columns} FROM rooms.events e
WHERE e.room_id = $1 AND e.relates_to = $2 AND (e.anchor, e.sub) > ($3, $4) AND (e.anchor, e.sub) <= ($5, $6)
  AND e.redacted_by IS NULL {conditions}
ORDER BY e.anchor {direction}, e.sub {direction} LIMIT $7
"""
# By direction, and by how many of rel_type and type are asked for.
_CHILDREN_PAGES = {
    (backwards, len(conditions)): _CHILDREN.format(
        columns=EVENT_COLUMNS,
        conditions=" ".join(conditions),
        direction="DESC" if backwards else "ASC",
    )
    for backwards in (True, False)
    for conditions in ([], ["AND e.rel_type = $8"], ["AND e.rel_type = $8", "AND e.type = $9"])
}

_THREAD_ROOTS = f"""
SELECT t.latest_anchor, {EVENT_COLUMNS} FROM rooms.threads t
JOIN rooms.events e ON e.room_id = t.room_id AND e.event_id = t.thread_root
WHERE t.room_id = $1 AND t.latest_anchor <= $2 AND e.anchor IS NOT NULL
  AND ($3::text IS NULL OR e.sender = $3 OR EXISTS (
        SELECT 1 FROM rooms.events reply
        WHERE reply.room_id = t.room_id AND reply.thread_root = t.thread_root AND reply.rel_type = 'm.thread'
          AND reply.sender = $3 AND reply.anchor IS NOT NULL))
ORDER BY t.latest_anchor DESC LIMIT $4
"""  # noqa: S608

_ANNOTATION_SENT = """
SELECT sender_device, txn_id FROM rooms.events
WHERE room_id = $1 AND relates_to = $2 AND rel_type = 'm.annotation' AND type = $3 AND sender = $4
  AND relation_key = $5 AND redacted_by IS NULL AND anchor IS NOT NULL
LIMIT 1
"""


async def list_bundles(
    tx: Transaction, room_id: RoomId, event_ids: Sequence[EventId], reader: UserId, *, up_to: OrderKey | None = None
) -> dict[EventId, Bundle]:
    """What is to be bundled with those of the events that have anything: one query, at most three.

    Args:
        up_to: the last point that the reader may see; None if there is no such limit.
    """
    if not event_ids:
        return {}
    bundles: dict[EventId, Bundle] = {}
    top = up_to or HIGHEST
    edited: list[EventId] = []
    threads: list[EventId] = []
    for target, rel_type, references in await tx.fetch(_HAVE_RELATIONS, room_id, list(event_ids), *top):
        bundle = bundles.setdefault(target, Bundle())
        if rel_type == "m.reference":
            bundle.references = list(references[:MAX_BUNDLED_REFERENCES])
        else:
            (edited if rel_type == "m.replace" else threads).append(target)
    if threads:
        for row in await tx.fetch(_THREADS, room_id, threads, *top, reader):
            bundle = bundles[row[0]]
            bundle.thread_count, bundle.participated = row[1], row[2]
            bundle.thread_latest = EventRow(*row[3:])
            edited.append(bundle.thread_latest.event_id)
    if edited:
        for row in await tx.fetch(_EDITS, room_id, edited, *top):
            edit = EventRow(*row)
            assert edit.relates_to is not None
            bundles.setdefault(edit.relates_to, Bundle()).edit = edit
    return bundles


async def list_children(
    tx: Transaction,
    room_id: RoomId,
    event_id: EventId,
    *,
    after: OrderKey | None,
    up_to: OrderKey | None,
    backwards: bool,
    limit: int,
    kinds: Sequence[str] = (),
) -> list[EventRow]:
    """A page of the events that relate to `event_id`, with after < key <= up_to; redacted ones relate no more.

    Args:
        kinds: only those of this rel_type, and of this event type if there is a second element.
    """
    query = _CHILDREN_PAGES[backwards, len(kinds)]
    rows = await tx.fetch(query, room_id, event_id, *(after or LOWEST), *(up_to or HIGHEST), limit, *kinds)
    return [EventRow._make(row) for row in rows]


async def list_thread_roots(
    tx: Transaction, room_id: RoomId, *, up_to: OrderKey, participant: UserId | None, limit: int
) -> list[tuple[int, EventRow]]:
    """(anchor of the latest reply, root) of threads, the most recently active first.

    Args:
        up_to: only threads whose latest reply lies at or before this point.
        participant: only threads in which this user has written.
    """
    rows = await tx.fetch(_THREAD_ROOTS, room_id, up_to.anchor, participant, limit)
    return [(row[0], EventRow(*row[1:])) for row in rows]


async def find_annotation(
    tx: Transaction, room_id: RoomId, target: EventId, event_type: str, sender: UserId, key: str
) -> tuple[str | None, str | None] | None:
    """(device, transaction ID) of the user's annotation of the event with this key; None if there is none."""
    row = await tx.fetchrow(_ANNOTATION_SENT, room_id, target, event_type, sender, key)
    return None if row is None else (row[0], row[1])
