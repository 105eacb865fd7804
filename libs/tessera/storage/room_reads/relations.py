"""Events that relate to others: what is bundled with an event, and pages of its children.

Spec: C-S API §Aggregations of child events, §Relationships API.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, HIGHEST, LOWEST, EventRow

MAX_BUNDLED_REFERENCES = 100
MAX_DEPTH = 3  # relations from an event to those that relate to it indirectly
MAX_DESCENDANTS = 10_000  # nearest first


@dataclass(slots=True)
class Bundle:
    """What is aggregated at one event."""

    edit: EventRow | None = None
    references: list[EventId] = field(default_factory=list)
    thread_latest: EventRow | None = None
    thread_count: int = 0
    participated: bool = False


# Ways to relate that are bundled, of events that the reader may see; $4 are ignored users, $5 is the reader.
_HAVE_BUNDLES = """
SELECT w.room_id, w.event_id, c.rel_type,
       (array_agg(c.event_id ORDER BY c.anchor, c.sub) FILTER (WHERE c.rel_type = 'm.reference'))[1:$6],
       count(*), bool_or(c.sender = $5), max(c.anchor)
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w (room_id, event_id, up_to)
JOIN rooms.events c ON c.room_id = w.room_id AND c.relates_to = w.event_id AND c.anchor <= w.up_to
WHERE c.rel_type IN ('m.replace', 'm.reference', 'm.thread') AND c.redacted_by IS NULL AND c.sender <> ALL($4::text[])
GROUP BY w.room_id, w.event_id, c.rel_type
"""

# Constant text is put together here; values are always parameters.
_LATEST = f"""
SELECT w.room_id, w.event_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w (room_id, event_id, anchor)
CROSS JOIN LATERAL (
    SELECT * FROM rooms.events l
    WHERE l.room_id = w.room_id AND l.relates_to = w.event_id AND l.rel_type = 'm.thread' AND l.anchor = w.anchor
      AND l.redacted_by IS NULL AND l.sender <> ALL($4::text[])
    ORDER BY l.sub DESC LIMIT 1
) e
"""  # noqa: S608  constant text

# The newest valid edit by time: by the sender of its target, of its type, neither being state, with a new content
# unless that is encrypted. In canonical JSON the key cannot be spelt otherwise; within a string its quotes are escaped.
_EDITS = f"""
SELECT DISTINCT ON (e.room_id, e.relates_to) e.room_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w (room_id, event_id, up_to)
JOIN rooms.events original ON original.room_id = w.room_id AND original.event_id = w.event_id
JOIN rooms.events e ON e.room_id = w.room_id AND e.relates_to = w.event_id AND e.rel_type = 'm.replace'
    AND e.anchor <= w.up_to
WHERE e.state_key IS NULL AND e.redacted_by IS NULL AND original.redacted_by IS NULL
  AND original.state_key IS NULL AND original.rel_type IS DISTINCT FROM 'm.replace'
  AND e.sender = original.sender AND e.type = original.type
  AND (e.type = 'm.room.encrypted' OR position('"m.new_content":{{'::bytea IN e.pdu) > 0)
ORDER BY e.room_id, e.relates_to, e.origin_server_ts DESC, e.event_id COLLATE "C" DESC
"""  # noqa: S608  constant text

_CHILDREN = """
{descendants}
SELECT {columns} FROM rooms.events e {found}
WHERE e.room_id = $1 {related} AND (e.anchor, e.sub) > ($3, $4) AND (e.anchor, e.sub) <= ($5, $6)
  AND e.redacted_by IS NULL AND (e.state_key IS NOT NULL OR e.sender <> ALL($8::text[])) {conditions}
ORDER BY e.anchor {direction}, e.sub {direction} LIMIT $7
"""
_DIRECT = {"descendants": "", "found": "", "related": "AND e.relates_to = $2"}
# What a redacted event related to is forgotten, and what related to it hangs in the air.
_RECURSIVE = {
    "descendants": f"""
WITH RECURSIVE related (event_id, depth) AS (
    SELECT $2::text, 0
    UNION ALL
    SELECT c.event_id, r.depth + 1
    FROM related r JOIN rooms.events c ON c.room_id = $1 AND c.relates_to = r.event_id
    WHERE r.depth < {MAX_DEPTH} AND c.redacted_by IS NULL AND c.anchor IS NOT NULL
), descendants AS MATERIALIZED (SELECT event_id FROM related WHERE depth > 0 LIMIT {MAX_DESCENDANTS})""",  # noqa: S608  constant text
    "found": "JOIN descendants d ON d.event_id = e.event_id",
    "related": "",
}
# By direction, by whether indirect relations count, and by how many of rel_type and type are asked for.
_CHILDREN_PAGES = {
    (backwards, recursive, len(conditions)): _CHILDREN.format(
        columns=EVENT_COLUMNS,
        conditions=" ".join(conditions),
        direction="DESC" if backwards else "ASC",
        **(_RECURSIVE if recursive else _DIRECT),
    )
    for backwards in (True, False)
    for recursive in (True, False)
    for conditions in ([], ["AND e.rel_type = $9"], ["AND e.rel_type = $9", "AND e.type = $10"])
}

_THREAD_ROOTS = f"""
SELECT t.latest_anchor, {EVENT_COLUMNS} FROM rooms.threads t
JOIN rooms.events e ON e.room_id = t.room_id AND e.event_id = t.thread_root
WHERE t.room_id = $1 AND t.latest_anchor <= $2 AND t.reply_count > 0 AND e.anchor IS NOT NULL {{participated}}
ORDER BY t.latest_anchor DESC LIMIT $3
"""  # noqa: S608  constant text
_ALL_THREADS = _THREAD_ROOTS.format(participated="")
_PARTICIPATED = _THREAD_ROOTS.format(
    participated="""AND (e.sender = $4 OR EXISTS (
        SELECT 1 FROM rooms.events reply
        WHERE reply.room_id = t.room_id AND reply.thread_root = t.thread_root AND reply.rel_type = 'm.thread'
          AND reply.sender = $4 AND reply.anchor IS NOT NULL AND reply.redacted_by IS NULL))"""
)

_REL_TYPE = "SELECT rel_type FROM rooms.events WHERE room_id = $1 AND event_id = $2"

_CHILD_IDS = """
SELECT event_id FROM rooms.events
WHERE room_id = $1 AND relates_to = $2 AND ($3::text[] IS NULL OR rel_type = ANY($3::text[]))
  AND anchor IS NOT NULL AND redacted_by IS NULL
ORDER BY anchor, sub LIMIT $4
"""

_ANNOTATION_SENT = """
SELECT sender_device, txn_id FROM rooms.events
WHERE room_id = $1 AND relates_to = $2 AND rel_type = 'm.annotation' AND type = $3 AND sender = $4
  AND relation_key = $5 AND redacted_by IS NULL AND anchor IS NOT NULL
LIMIT 1
"""


async def list_bundles(
    tx: Transaction,
    room_id: RoomId,
    event_ids: Sequence[EventId],
    reader: UserId,
    *,
    up_to: OrderKey | None = None,
    ignored: Collection[UserId] = (),
) -> dict[EventId, Bundle]:
    """What is to be bundled with events of one room; see `list_room_bundles`.

    Args:
        up_to: the last point that the reader may see; None if there is no such limit.
    """
    if not event_ids:
        return {}
    top = up_to or HIGHEST
    return (await list_room_bundles(tx, {room_id: (top.anchor, event_ids)}, reader, ignored)).get(room_id, {})


async def list_room_bundles(
    tx: Transaction,
    events: Mapping[RoomId, tuple[int, Sequence[EventId]]],
    reader: UserId,
    ignored: Collection[UserId] = (),
) -> dict[RoomId, dict[EventId, Bundle]]:
    """What is to be bundled with events of many rooms: one statement where nothing relates to them, at most four.

    Bundled with the latest event of a thread is what relates to that, under its own ID.

    Args:
        events: room -> (anchor of the last event that the reader may see, events).
        ignored: users of whom nothing is bundled.
    """
    tops = {room_id: up_to for room_id, (up_to, _) in events.items()}
    asked = [(room_id, event_id) for room_id, (_, ids) in events.items() for event_id in ids]
    bundles: dict[RoomId, dict[EventId, Bundle]] = defaultdict(dict)
    edited, threads = await _gather(tx, bundles, asked, tops, reader, ignored)
    if threads:
        latest: list[tuple[RoomId, EventId]] = []
        columns = zip(*((*key, anchor) for key, anchor in threads.items()), strict=True)
        for row in await tx.fetch(_LATEST, *(list(column) for column in columns), list(ignored)):
            event = EventRow._make(row[2:])
            bundles[row[0]][row[1]].thread_latest = event
            latest.append((row[0], event.event_id))
        edited += (await _gather(tx, bundles, latest, tops, reader, ignored))[0]
    if edited:
        for row in await tx.fetch(_EDITS, *_columns(edited, tops)):
            edit = EventRow._make(row[1:])
            assert edit.relates_to is not None
            bundles[row[0]][edit.relates_to].edit = edit
    return bundles


async def _gather(
    tx: Transaction,
    bundles: dict[RoomId, dict[EventId, Bundle]],
    asked: Sequence[tuple[RoomId, EventId]],
    tops: Mapping[RoomId, int],
    reader: UserId,
    ignored: Collection[UserId],
) -> tuple[list[tuple[RoomId, EventId]], dict[tuple[RoomId, EventId], int]]:
    """Note in `bundles` what relates to events; answers those that may have edits, and the ends of threads."""
    edited: list[tuple[RoomId, EventId]] = []
    threads: dict[tuple[RoomId, EventId], int] = {}
    rows = await tx.fetch(_HAVE_BUNDLES, *_columns(asked, tops), list(ignored), reader, MAX_BUNDLED_REFERENCES)
    for room_id, event_id, rel_type, references, count, participated, last in rows:
        bundle = bundles[room_id].setdefault(event_id, Bundle())
        if rel_type == "m.reference":
            bundle.references = references
        elif rel_type == "m.thread":
            bundle.thread_count, bundle.participated = count, participated
            threads[room_id, event_id] = last
        else:
            edited.append((room_id, event_id))
    return edited, threads


def _columns(events: Sequence[tuple[RoomId, EventId]], tops: Mapping[RoomId, int]) -> list[list[object]]:
    return [[one[0] for one in events], [one[1] for one in events], [tops[one[0]] for one in events]]


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
    recursive: bool = False,
    ignored: Collection[UserId] = (),
) -> list[EventRow]:
    """A page of the events that relate to `event_id`, with after < key <= up_to; redacted ones relate no more.

    Args:
        kinds: only those of this rel_type, and of this event type if there is a second element.
        recursive: those too that relate to it through others, of whatever kind: MAX_DEPTH relations at most.
        ignored: users whose events, other than state, are left out.
    """
    query = _CHILDREN_PAGES[backwards, recursive, len(kinds)]
    bounds = (*(after or LOWEST), *(up_to or HIGHEST))
    rows = await tx.fetch(query, room_id, event_id, *bounds, limit, list(ignored), *kinds)
    return [EventRow._make(row) for row in rows]


async def list_child_ids(
    tx: Transaction, room_id: RoomId, event_id: EventId, rel_types: Sequence[str] | None, limit: int
) -> list[EventId]:
    """Events that relate to this one and are not redacted, the oldest first; None is every way to relate."""
    rows = await tx.fetch(_CHILD_IDS, room_id, event_id, None if rel_types is None else list(rel_types), limit)
    return [EventId(row[0]) for row in rows]


async def list_thread_roots(
    tx: Transaction, room_id: RoomId, *, up_to: OrderKey, participant: UserId | None, limit: int
) -> list[tuple[int, EventRow]]:
    """(anchor of the latest reply, root) of threads, the most recently active first.

    Args:
        up_to: only threads whose latest reply lies at or before this point.
        participant: only threads in which this user has written.
    """
    if participant is None:
        rows = await tx.fetch(_ALL_THREADS, room_id, up_to.anchor, limit)
    else:
        rows = await tx.fetch(_PARTICIPATED, room_id, up_to.anchor, limit, participant)
    return [(row[0], EventRow(*row[1:])) for row in rows]


async def find_rel_type(tx: Transaction, room_id: RoomId, event_id: EventId) -> str | None:
    """How the event itself relates to another; None if it does not, or is not known here."""
    rel_type: str | None = await tx.fetchval(_REL_TYPE, room_id, event_id)
    return rel_type


async def find_annotation(
    tx: Transaction, room_id: RoomId, target: EventId, event_type: str, sender: UserId, key: str
) -> tuple[str | None, str | None] | None:
    """(device, transaction ID) of the user's annotation of the event with this key; None if there is none."""
    row = await tx.fetchrow(_ANNOTATION_SENT, room_id, target, event_type, sender, key)
    return None if row is None else (row[0], row[1])
