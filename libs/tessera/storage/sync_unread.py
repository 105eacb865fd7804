"""Unread counts of one user in many rooms, from the cumulative counters that events carry.

Count = C(now) - C(read), less what was redacted since; `read` is the furthest of the given receipt, the user's
own last event and the own membership. Corrections look at REDACTION_WINDOW redacted events of a room at most.

Spec: C-S API §Receiving notifications; DESIGN.md section 5.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction

REDACTION_WINDOW = 500
EVALUATED_EVENTS = 500  # of a room, for users whose push rules are their own
MAX_THREADS = 100  # of a room, newest first


class UnreadCount(NamedTuple):
    """Unread in one thread, or with thread_root None in the main timeline."""

    room_id: RoomId
    thread_root: EventId | None
    notify: int
    highlight: int


class UnreadEvent(NamedTuple):
    """An event that a user's own rules are to judge; `room_mention`: it highlights for everybody."""

    room_id: RoomId
    event_id: EventId
    anchor: int
    sender: UserId
    thread_root: EventId | None
    joined_count: int
    room_mention: bool
    redacted: bool
    pdu: bytes


# Where the counters of an event stand: of the main timeline on every event, of a thread on the thread's own.
_MAIN_COLUMNS = {"notify": "notify_count", "highlight": "highlight_all_count"}
_THREAD_COLUMNS = {"notify": "thread_notify_count", "highlight": "thread_highlight_all_count"}

# The counters just before the event `e`, as {name}.
_BEFORE = """
    LEFT JOIN LATERAL (
        SELECT b.{notify} AS notify, b.{highlight} AS highlight FROM rooms.events b
        WHERE b.room_id = e.room_id AND b.anchor IS NOT NULL AND b.sub = 0 AND b.anchor < e.anchor {same_thread}
        ORDER BY b.anchor DESC, b.sub DESC LIMIT 1
    ) {name} ON {condition}
"""
_MAIN_BEFORE = _BEFORE.format(**_MAIN_COLUMNS, same_thread="", name="p", condition="true")
_SAME_THREAD = "AND b.thread_root = e.thread_root"
_THREAD_BEFORE = _BEFORE.format(**_THREAD_COLUMNS, same_thread=_SAME_THREAD, name="p", condition="true")

# `now` are the counters as they are, `read` says how far they have been read; {source} names both. A mention notifies
# its user even where the event notifies nobody else; that is told by the event before it.
_COUNT = """
SELECT now.room_id, {thread_root},
       greatest(0, now.notify_count - coalesce(at.notify, 0) + coalesce(m.extra, 0)
                   - coalesce(gone.notify, 0)::bigint),
       greatest(0, now.highlight_all_count - coalesce(at.highlight, 0) + coalesce(m.highlight, 0)
                   - coalesce(gone.highlight, 0)::bigint)
{source}
LEFT JOIN LATERAL (
    SELECT e.{notify} AS notify, e.{highlight} AS highlight FROM rooms.events e
    WHERE e.room_id = now.room_id AND e.anchor IS NOT NULL AND e.sub = 0 AND e.anchor <= read.anchor {counted}
    ORDER BY e.anchor DESC, e.sub DESC LIMIT 1
) at ON true
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE e.{highlight} <= coalesce(p.highlight, 0)) AS highlight,
           count(*) FILTER (WHERE e.{notify} <= coalesce(p.notify, 0)) AS extra
    FROM rooms.mentions n
    JOIN rooms.events e ON e.room_id = n.room_id AND e.event_id = n.event_id AND e.redacted_by IS NULL
    {before}
    WHERE n.room_id = now.room_id AND n.user_id = $3 AND n.anchor > read.anchor AND n.thread_root = {mentioned_in}
) m ON true
LEFT JOIN LATERAL (
    SELECT sum(e.{notify} - coalesce(p.notify, 0)) AS notify,
           sum(e.{highlight} - coalesce(p.highlight, 0)) AS highlight
    FROM (
        SELECT * FROM rooms.events e
        WHERE e.room_id = now.room_id AND e.redacted_by IS NOT NULL AND e.anchor > read.anchor AND e.sub = 0
          AND e.thread_root {redacted_in}
        ORDER BY e.anchor DESC LIMIT $4
    ) e
    {before}
) gone ON now.notify_count > coalesce(at.notify, 0)
"""

# Nothing from before the own membership counts, nor what has been deleted, whatever was read.
_READ_AT_LEAST = """
FROM unnest($1::text[], $2::bigint[]) AS w (room_id, read_anchor)
CROSS JOIN LATERAL (
    SELECT greatest(w.read_anchor, (
        SELECT s.anchor FROM rooms.current_state s
        WHERE s.room_id = w.room_id AND s.type = 'm.room.member' AND s.state_key = $3
    ), (SELECT r.purged_anchor FROM rooms.rooms r WHERE r.room_id = w.room_id), 0) AS anchor
) base
"""

_MAIN = _COUNT.format(
    **_MAIN_COLUMNS,
    thread_root="NULL::text",
    source="""
FROM unnest($1::text[], $9::bigint[]) AS w (room_id, read_anchor)
JOIN rooms.rooms now ON now.room_id = w.room_id
CROSS JOIN LATERAL (
    SELECT greatest(w.read_anchor, (
        SELECT e.anchor FROM rooms.events e
        WHERE e.room_id = w.room_id AND e.sender = $3 AND e.anchor IS NOT NULL AND e.thread_root IS NULL
        ORDER BY e.anchor DESC, e.sub DESC LIMIT 1
    ), (
        SELECT s.anchor FROM rooms.current_state s
        WHERE s.room_id = w.room_id AND s.type = 'm.room.member' AND s.state_key = $3
    ), now.purged_anchor) AS anchor
) read
""",
    counted="",
    before=_MAIN_BEFORE,
    mentioned_in="''",
    redacted_in="IS NULL",
)

_UNREAD_THREADS = f"""{_READ_AT_LEAST}
CROSS JOIN LATERAL (
    SELECT * FROM rooms.threads t WHERE t.room_id = w.room_id AND t.latest_anchor > base.anchor
    ORDER BY t.latest_anchor DESC LIMIT $8
) now
LEFT JOIN unnest($5::text[], $6::text[], $7::bigint[]) AS own (room_id, thread_root, read_anchor)
    ON own.room_id = now.room_id AND own.thread_root = now.thread_root
CROSS JOIN LATERAL (
    SELECT greatest(base.anchor, own.read_anchor, (
        SELECT e.anchor FROM rooms.events e
        WHERE e.room_id = now.room_id AND e.thread_root = now.thread_root AND e.sender = $3 AND e.anchor IS NOT NULL
        ORDER BY e.anchor DESC, e.sub DESC LIMIT 1
    )) AS anchor
) read
"""  # noqa: S608  constant text

_THREADS = _COUNT.format(
    **_THREAD_COLUMNS,
    thread_root="now.thread_root",
    source=_UNREAD_THREADS,
    counted="AND e.thread_root = now.thread_root",
    before=_THREAD_BEFORE,
    mentioned_in="now.thread_root",
    redacted_in="= now.thread_root",
)

_COUNTS = f"{_MAIN} UNION ALL {_THREADS} WHERE now.latest_anchor > read.anchor"

_EVENTS = f"""
SELECT w.room_id, e.event_id, e.anchor, e.sender, e.thread_root, e.joined_count,
       (e.highlight_all_count > coalesce(p.highlight, 0)
        OR e.thread_root IS NOT NULL AND e.thread_highlight_all_count > coalesce(pt.highlight, 0)),
       e.redacted_by IS NOT NULL, e.pdu
{_READ_AT_LEAST}
CROSS JOIN LATERAL (
    SELECT * FROM rooms.events e
    WHERE e.room_id = w.room_id AND e.anchor IS NOT NULL AND e.anchor > base.anchor
    ORDER BY e.anchor DESC, e.sub DESC LIMIT $4
) e
{_MAIN_BEFORE}
{_BEFORE.format(**_THREAD_COLUMNS, same_thread=_SAME_THREAD, name="pt", condition="e.thread_root IS NOT NULL")}
WHERE e.sub = 0
ORDER BY w.room_id, e.anchor
"""  # noqa: S608  constant text

_LAST_POSITION = "SELECT last_position FROM rooms.rooms WHERE room_id = $1"


async def get_last_position(tx: Transaction, room_id: RoomId) -> int:
    """The position of the newest record of a room that is here."""
    position: int = await tx.fetchval(_LAST_POSITION, room_id)
    return position


async def count(
    tx: Transaction,
    user_id: UserId,
    read: Sequence[tuple[RoomId, int, int]],
    read_threads: Sequence[tuple[RoomId, EventId, int]],
) -> list[UnreadCount]:
    """Unread in rooms and their threads, for a user with the default push rules, in one statement.

    Args:
        read: (room, anchor of the unthreaded receipt, anchor of the furthest receipt that covers the main
            timeline); 0 for none.
        read_threads: (room, thread root, anchor) of the threads' own receipts.
    """
    rows = await tx.fetch(
        _COUNTS,
        [one[0] for one in read],
        [one[1] for one in read],
        user_id,
        REDACTION_WINDOW,
        [one[0] for one in read_threads],
        [one[1] for one in read_threads],
        [one[2] for one in read_threads],
        MAX_THREADS,
        [one[2] for one in read],
    )
    return [UnreadCount(*row) for row in rows]


async def list_unread_events(tx: Transaction, user_id: UserId, read: Mapping[RoomId, int]) -> list[UnreadEvent]:
    """The newest EVALUATED_EVENTS events of each room above the read anchor, by room and in order."""
    rows = await tx.fetch(_EVENTS, list(read), list(read.values()), user_id, EVALUATED_EVENTS)
    return [UnreadEvent(*row) for row in rows]
