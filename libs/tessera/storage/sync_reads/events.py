"""Timelines and states of many rooms."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow

EVERYTHING = OrderKey(-1, -(1 << 30))  # below every event


class StateRow(NamedTuple):
    """A change of current state: the event that a key got, None where a resolution took it away."""

    key: tuple[str, str]
    event: EventRow | None


# Constant text is put together here; values are always parameters.
_TIMELINES = f"""
SELECT w.room_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::bigint[], $3::integer[], $4::bigint[]) AS w (room_id, after, after_sub, up_to)
CROSS JOIN LATERAL (
    SELECT * FROM rooms.events t
    WHERE t.room_id = w.room_id AND t.anchor IS NOT NULL AND (t.anchor, t.sub) > (w.after, w.after_sub)
      AND t.anchor <= w.up_to AND (t.sub = 0 OR w.after < 0)
    ORDER BY t.anchor DESC, t.sub DESC LIMIT $5
) e
"""  # noqa: S608  constant text

# The state at a point is the current one with the keys that changed above the point turned back; a room that began
# above it had none.
_STATES = f"""
WITH wanted AS MATERIALIZED (
    SELECT w.*, EXISTS (
        SELECT FROM rooms.state_history h WHERE h.room_id = w.room_id AND (h.anchor, h.sub) <= (w.anchor, w.sub)
    ) AS had_state
    FROM unnest($1::text[], $2::bigint[], $3::integer[], $5::bigint[]) AS w (room_id, anchor, sub, up_to)
), later AS MATERIALIZED (
    SELECT w.room_id, w.anchor, w.sub, w.up_to, w.had_state, h.type, h.state_key, h.event_id,
           h.anchor AS changed_anchor, h.sub AS changed_sub
    FROM wanted w JOIN rooms.state_history h ON h.room_id = w.room_id AND (h.anchor, h.sub) > (w.anchor, w.sub)
), chosen AS (
    SELECT c.room_id, c.event_id, NULL::bigint AS changed_anchor, NULL::integer AS changed_sub, NULL::text AS type,
           NULL::text AS state_key
    FROM wanted w JOIN rooms.current_state c ON c.room_id = w.room_id
    WHERE ($4 OR c.type <> 'm.room.member') AND NOT EXISTS (
        SELECT FROM later l WHERE l.room_id = c.room_id AND l.type = c.type AND l.state_key = c.state_key
    )
    UNION ALL
    SELECT l.room_id, before.event_id, NULL, NULL, NULL, NULL
    FROM (
        SELECT DISTINCT room_id, anchor, sub, type, state_key FROM later
        WHERE had_state AND ($4 OR type <> 'm.room.member')
    ) l
    CROSS JOIN LATERAL (
        SELECT h.event_id FROM rooms.state_history h
        WHERE h.room_id = l.room_id AND h.type = l.type AND h.state_key = l.state_key
          AND (h.anchor, h.sub) <= (l.anchor, l.sub)
        ORDER BY h.anchor DESC, h.sub DESC LIMIT 1
    ) before
    UNION ALL
    SELECT l.room_id, l.event_id, l.changed_anchor, l.changed_sub, l.type, l.state_key
    FROM later l WHERE l.changed_anchor <= l.up_to
)
SELECT chosen.room_id, chosen.type, chosen.state_key, {EVENT_COLUMNS}
FROM chosen LEFT JOIN rooms.events e ON e.room_id = chosen.room_id AND e.event_id = chosen.event_id
WHERE e.event_id IS NOT NULL OR chosen.type IS NOT NULL
ORDER BY chosen.changed_anchor NULLS FIRST, chosen.changed_sub
"""  # noqa: S608  constant text

_MEMBERS = f"""
SELECT e.room_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::bigint[], $3::integer[], $4::text[]) AS w (room_id, anchor, sub, user_id)
CROSS JOIN LATERAL (
    SELECT h.event_id FROM rooms.state_history h
    WHERE h.room_id = w.room_id AND h.type = 'm.room.member' AND h.state_key = w.user_id
      AND (h.anchor, h.sub) <= (w.anchor, w.sub)
    ORDER BY h.anchor DESC, h.sub DESC LIMIT 1
) s
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = s.event_id
"""  # noqa: S608  constant text

_STATE_CHANGES = f"""
SELECT s.room_id, s.type, s.state_key, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::integer[]) AS w (room_id, after, up_to, up_to_sub)
CROSS JOIN LATERAL (
    SELECT DISTINCT ON (h.type, h.state_key) h.room_id, h.type, h.state_key, h.event_id
    FROM rooms.state_history h
    WHERE h.room_id = w.room_id AND h.anchor > w.after AND (h.anchor, h.sub) <= (w.up_to, w.up_to_sub)
    ORDER BY h.type, h.state_key, h.anchor DESC, h.sub DESC
) s
LEFT JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
"""  # noqa: S608  constant text


async def list_timelines(
    tx: Transaction, spans: Mapping[RoomId, tuple[OrderKey, int]], limit: int
) -> dict[RoomId, list[EventRow]]:
    """The newest `limit` events of each room, oldest first.

    Args:
        spans: room -> (after, up_to): events with a key above `after` and an anchor up to `up_to`; what was
            backfilled counts only if `after` is EVERYTHING.
    """
    found: dict[RoomId, list[EventRow]] = {room_id: [] for room_id in spans}
    afters = [span[0] for span in spans.values()]
    for row in await tx.fetch(
        _TIMELINES,
        list(spans),
        [after.anchor for after in afters],
        [after.sub for after in afters],
        [span[1] for span in spans.values()],
        limit,
    ):
        found[row[0]].append(EventRow._make(row[1:]))
    for events in found.values():
        events.sort(key=lambda event: event.order)
    return found


async def list_states(
    tx: Transaction, spans: Mapping[RoomId, tuple[OrderKey, int]], *, with_members: bool
) -> dict[RoomId, tuple[list[EventRow], list[StateRow]]]:
    """For each room the state at a point, in no order, and the changes above it in order.

    Args:
        spans: room -> (point, anchor up to which changes are told).
        with_members: whether the state has member events; the changes do.
    """
    found: dict[RoomId, tuple[list[EventRow], list[StateRow]]] = {room_id: ([], []) for room_id in spans}
    points = [span[0] for span in spans.values()]
    rows = await tx.fetch(
        _STATES,
        list(spans),
        [point.anchor for point in points],
        [point.sub for point in points],
        with_members,
        [span[1] for span in spans.values()],
    )
    for row in rows:
        state, changes = found[row[0]]
        if row[1] is None:
            state.append(EventRow._make(row[3:]))
        else:
            changes.append(_state_row(row))
    return found


async def list_members_at(
    tx: Transaction, members: Mapping[RoomId, tuple[OrderKey, Collection[UserId]]]
) -> dict[RoomId, dict[UserId, EventRow]]:
    """Some users' member events in each room at a point of its order."""
    wanted = [(room_id, *point, user_id) for room_id, (point, users) in members.items() for user_id in users]
    found: dict[RoomId, dict[UserId, EventRow]] = defaultdict(dict)
    if not wanted:
        return found
    columns = [list(column) for column in zip(*wanted, strict=True)]
    for row in await tx.fetch(_MEMBERS, *columns):
        event = EventRow._make(row[1:])
        found[row[0]][UserId(event.state_key or "")] = event
    return found


async def list_state_changes(
    tx: Transaction, spans: Mapping[RoomId, tuple[int, OrderKey]]
) -> dict[RoomId, list[StateRow]]:
    """For each state key the newest change in after < key <= up_to."""
    found: dict[RoomId, list[StateRow]] = {room_id: [] for room_id in spans}
    rows = await tx.fetch(
        _STATE_CHANGES,
        list(spans),
        [span[0] for span in spans.values()],
        [span[1].anchor for span in spans.values()],
        [span[1].sub for span in spans.values()],
    )
    for row in rows:
        found[row[0]].append(_state_row(row))
    return found


def _state_row(row: Sequence[Any]) -> StateRow:
    return StateRow((row[1], row[2]), None if row[3] is None else EventRow._make(row[3:]))
