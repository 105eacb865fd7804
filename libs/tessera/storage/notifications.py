"""Events of many rooms, newest first, that may have notified one user.

Nobody writes a row for each member whom an ordinary message notifies; whether it did is judged again when the user
asks for the list. What may notify nobody is left out here already.

Spec: C-S API §Listing Notifications; DESIGN.md section 5.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow


class Range(NamedTuple):
    """Which events of a room are looked at: from_anchor <= anchor < below."""

    room_id: RoomId
    from_anchor: int
    below: int


class Candidate(NamedTuple):
    """An event that may have notified the user; `room_mention`: it highlights for everybody."""

    event: EventRow
    received_ms: int
    joined_count: int
    room_mention: bool


class Looked(NamedTuple):
    """What was looked at in one room.

    Attributes:
        oldest: the anchor of the oldest event looked at; None where there was none.
        is_whole: nothing older is left of the range.
    """

    room_id: RoomId
    oldest: int | None
    is_whole: bool
    candidates: list[Candidate]


# State notifies by rules only that nobody has by default, except for invites and tombstones; such rules see state
# as well, hence the second form.
_LOOK = """
WITH looked AS MATERIALIZED (
    SELECT e.room_id, e.event_id, e.anchor, e.type, e.state_key, e.sender, e.redacted_by
    FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (room_id, from_anchor, below)
    CROSS JOIN LATERAL (
        SELECT * FROM rooms.events l
        WHERE l.room_id = w.room_id AND l.anchor >= w.from_anchor AND l.anchor < w.below AND l.sub = 0
        ORDER BY l.anchor DESC, l.sub DESC LIMIT $4
    ) e
), ends AS (
    SELECT room_id, min(anchor) AS oldest, count(*) < $4 AS is_whole FROM looked GROUP BY room_id
)
SELECT ends.room_id, ends.oldest, ends.is_whole, c.*
FROM ends
LEFT JOIN (
    SELECT e.room_id AS found_in, e.received_ms, e.joined_count,
           e.highlight_all_count > coalesce(p.highlight, 0)
           OR e.thread_root IS NOT NULL AND e.thread_highlight_all_count > coalesce(pt.highlight, 0),
           {columns}
    FROM looked l
    JOIN rooms.events e ON e.room_id = l.room_id AND e.event_id = l.event_id
    LEFT JOIN LATERAL (
        SELECT b.highlight_all_count AS highlight FROM rooms.events b
        WHERE b.room_id = e.room_id AND b.anchor < e.anchor AND b.anchor IS NOT NULL AND b.sub = 0
        ORDER BY b.anchor DESC, b.sub DESC LIMIT 1
    ) p ON e.highlight_all_count > 0
    LEFT JOIN LATERAL (
        SELECT b.thread_highlight_all_count AS highlight FROM rooms.events b
        WHERE b.room_id = e.room_id AND b.anchor < e.anchor AND b.anchor IS NOT NULL AND b.sub = 0
          AND b.thread_root = e.thread_root
        ORDER BY b.anchor DESC, b.sub DESC LIMIT 1
    ) pt ON e.thread_highlight_all_count > 0
    WHERE l.sender <> ALL($5::text[]) AND l.redacted_by IS NULL {by_default}
) c ON c.found_in = ends.room_id
"""
_LOOK_ALL = _LOOK.format(columns=EVENT_COLUMNS, by_default="")
_LOOK_BY_DEFAULT = _LOOK.format(
    columns=EVENT_COLUMNS,
    by_default="""
      AND (l.state_key IS NULL AND l.type <> 'm.reaction' OR l.type = 'm.room.tombstone'
           OR l.type = 'm.room.member' AND l.state_key = $6)""",
)


async def look_at_rooms(
    tx: Transaction,
    ranges: Sequence[Range],
    user_id: UserId,
    *,
    window: int,
    silent: Sequence[UserId],
    default_rules: bool,
) -> list[Looked]:
    """Look at the newest `window` events of each range; rooms without any are left out.

    Args:
        silent: whose events never notify: the user's own, ignored users'.
        default_rules: whether the user has no others, so that most state need not be judged.
    """
    columns = [[one.room_id for one in ranges], [one.from_anchor for one in ranges], [one.below for one in ranges]]
    if default_rules:
        rows = await tx.fetch(_LOOK_BY_DEFAULT, *columns, window, list(silent), user_id)
    else:
        rows = await tx.fetch(_LOOK_ALL, *columns, window, list(silent))
    found: dict[str, Looked] = {}
    for row in rows:
        looked = found.setdefault(row[0], Looked(RoomId(row[0]), row[1], row[2], []))
        if row[3] is not None:
            looked.candidates.append(Candidate(EventRow._make(row[7:]), row[4], row[5], row[6]))
    return list(found.values())
