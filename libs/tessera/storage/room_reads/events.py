"""Events of a room in its one order, as rows with what serving them needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction

SCAN_LIMIT = 2_000  # events looked at for one page of a filtered timeline


class EventRow(NamedTuple):
    """One event as stored, with the neighbours that its unsigned part shows.

    `pdu` is the served form: already redacted if `redacted_by` is set. `previous_pdu` belongs to
    `replaces_state`, `redaction_pdu` to `redacted_by`. anchor and sub are None for outliers, rejected
    and soft-failed events.
    """

    event_id: EventId
    anchor: int | None
    sub: int | None
    type: str
    state_key: str | None
    sender: UserId
    origin_server_ts: int
    membership: str | None
    history_visibility: str
    sender_device: str | None
    txn_id: str | None
    replaces_state: EventId | None
    redacted_by: EventId | None
    relates_to: EventId | None
    rel_type: str | None
    thread_root: EventId | None
    pdu: bytes
    previous_pdu: bytes | None
    redaction_pdu: bytes | None

    @property
    def order(self) -> OrderKey:
        """Its place in the room; a programming error for an event that has none."""
        assert self.anchor is not None
        assert self.sub is not None
        return OrderKey(self.anchor, self.sub)


# For `FROM rooms.events e`. Nearly no event has the neighbours of the last two, so that they are looked for row by row.
EVENT_COLUMNS = """e.event_id, e.anchor, e.sub, e.type, e.state_key, e.sender, e.origin_server_ts, e.membership,
    e.history_visibility, e.sender_device, e.txn_id, e.replaces_state, e.redacted_by, e.relates_to, e.rel_type,
    e.thread_root, e.pdu,
    CASE WHEN e.replaces_state IS NOT NULL THEN (
        SELECT n.pdu FROM rooms.events n WHERE n.room_id = e.room_id AND n.event_id = e.replaces_state
    ) END,
    CASE WHEN e.redacted_by IS NOT NULL THEN (
        SELECT n.pdu FROM rooms.events n WHERE n.room_id = e.room_id AND n.event_id = e.redacted_by
    ) END"""

# Constant text is put together here; values are always parameters.
_BY_IDS = f"""
SELECT {EVENT_COLUMNS} FROM rooms.events e
WHERE e.room_id = $1 AND e.event_id = ANY($2::text[]) AND e.rejected IS NULL AND e.soft_failed IS NULL
"""  # noqa: S608  constant text

_ROOMS_WITH = "SELECT room_id FROM rooms.events WHERE room_id = ANY($1::text[]) AND event_id = $2"

_PAGE = """
SELECT {columns} FROM rooms.events e
WHERE e.room_id = $1 AND (e.anchor, e.sub) > ($2, $3) AND (e.anchor, e.sub) <= ($4, $5) AND e.anchor IS NOT NULL
ORDER BY e.anchor {direction}, e.sub {direction} LIMIT $6
"""

_FILTERED_PAGE = """
SELECT {columns} FROM (
    SELECT * FROM rooms.events e
    WHERE e.room_id = $1 AND (e.anchor, e.sub) > ($2, $3) AND (e.anchor, e.sub) <= ($4, $5) AND e.anchor IS NOT NULL
    ORDER BY e.anchor {direction}, e.sub {direction} LIMIT $6
) e
{where}
ORDER BY e.anchor {direction}, e.sub {direction} LIMIT $7
"""

_SCAN_END = """
SELECT e.anchor, e.sub FROM rooms.events e
WHERE e.room_id = $1 AND (e.anchor, e.sub) > ($2, $3) AND (e.anchor, e.sub) <= ($4, $5)
  AND e.anchor IS NOT NULL
ORDER BY e.anchor {direction}, e.sub {direction} OFFSET $6 LIMIT 1
"""

# NULL means "no such condition"; patterns come as LIKE patterns.
_MATCHES = """
WHERE ($8::text[] IS NULL OR e.type LIKE ANY($8::text[]))
  AND ($9::text[] IS NULL OR NOT e.type LIKE ANY($9::text[]))
  AND ($10::text[] IS NULL OR e.sender = ANY($10::text[]))
  AND ($11::text[] IS NULL OR NOT e.sender = ANY($11::text[]))
  AND ($12::text[] IS NULL OR e.state_key IS NOT NULL OR NOT e.sender = ANY($12::text[]))
  AND ($13::text[] IS NULL AND $14::text[] IS NULL OR EXISTS (
        SELECT 1 FROM rooms.events child
        WHERE child.room_id = e.room_id AND child.relates_to = e.event_id AND child.redacted_by IS NULL
          AND child.anchor IS NOT NULL
          AND ($13::text[] IS NULL OR child.sender = ANY($13::text[]))
          AND ($14::text[] IS NULL OR child.rel_type = ANY($14::text[]))))
"""

_DIRECTIONS = {True: "DESC", False: "ASC"}
_PAGES = {
    backwards: _PAGE.format(columns=EVENT_COLUMNS, direction=direction) for backwards, direction in _DIRECTIONS.items()
}
_FILTERED_PAGES = {
    backwards: _FILTERED_PAGE.format(columns=EVENT_COLUMNS, where=_MATCHES, direction=direction)
    for backwards, direction in _DIRECTIONS.items()
}
_SCAN_ENDS = {backwards: _SCAN_END.format(direction=_DIRECTIONS[backwards]) for backwards in (True, False)}

_BY_TIME = """
SELECT event_id, origin_server_ts, anchor, sub FROM rooms.events
WHERE room_id = $1 AND anchor IS NOT NULL AND (origin_server_ts, anchor, sub) {compare} ($2, $3, $4)
ORDER BY origin_server_ts {direction}, anchor {direction}, sub {direction} LIMIT $5
"""
_BY_TIMES = {
    True: _BY_TIME.format(compare="<", direction="DESC"),
    False: _BY_TIME.format(compare=">", direction="ASC"),
}

LOWEST = OrderKey(-(1 << 62), -(1 << 30))
HIGHEST = OrderKey(1 << 62, 1 << 30)


@dataclass(frozen=True, slots=True)
class EventConditions:
    """What a page's events must fulfil; None leaves a condition out.

    Attributes:
        types, not_types: event types where `*` stands for any characters.
        ignored_senders: whose events other than state are left out.
        related_by_senders, related_by_rel_types: only events to which such an event relates.
    """

    types: Sequence[str] | None = None
    not_types: Sequence[str] | None = None
    senders: Sequence[str] | None = None
    not_senders: Sequence[str] | None = None
    ignored_senders: Sequence[str] | None = None
    related_by_senders: Sequence[str] | None = None
    related_by_rel_types: Sequence[str] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every event fulfils them."""
        return self == _NO_CONDITIONS

    def parameters(self) -> tuple[Any, ...]:
        """In the order of the query's parameters."""
        return (
            like_patterns(self.types),
            like_patterns(self.not_types),
            _listed(self.senders),
            _listed(self.not_senders),
            _listed(self.ignored_senders),
            _listed(self.related_by_senders),
            _listed(self.related_by_rel_types),
        )


_NO_CONDITIONS = EventConditions()


def like_patterns(patterns: Sequence[str] | None) -> list[str] | None:
    """Patterns with `*` as the patterns of SQL's LIKE."""
    if patterns is None:
        return None
    return [
        pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%") for pattern in patterns
    ]


def _listed(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)


async def find_event(tx: Transaction, room_id: RoomId, event_id: EventId) -> EventRow | None:
    """One event, outliers included; rejected and soft-failed ones are never shown."""
    rows = await tx.fetch(_BY_IDS, room_id, [event_id])
    return EventRow(*rows[0]) if rows else None


async def list_events(tx: Transaction, room_id: RoomId, event_ids: Sequence[EventId]) -> list[EventRow]:
    """Those of the events that exist, in no order."""
    return [EventRow(*row) for row in await tx.fetch(_BY_IDS, room_id, list(event_ids))]


async def list_rooms_with_event(tx: Transaction, room_ids: Sequence[RoomId], event_id: EventId) -> list[RoomId]:
    """Those of the rooms that have an event of this ID, shown or not: one look-up for each in the key's index."""
    return [RoomId(row[0]) for row in await tx.fetch(_ROOMS_WITH, list(room_ids), event_id)]


async def list_page(
    tx: Transaction,
    room_id: RoomId,
    *,
    after: OrderKey | None,
    up_to: OrderKey | None,
    backwards: bool,
    limit: int,
    conditions: EventConditions = _NO_CONDITIONS,
) -> list[EventRow]:
    """The first `limit` events with after < key <= up_to that fulfil the conditions.

    Args:
        after, up_to: points of the room's order, None for its ends.
        backwards: newest first.
        limit: with conditions, at most SCAN_LIMIT events are looked at; see `find_scan_end`.
    """
    bounds = (room_id, *(after or LOWEST), *(up_to or HIGHEST))
    if conditions.is_empty:
        rows = await tx.fetch(_PAGES[backwards], *bounds, limit)
    else:
        rows = await tx.fetch(_FILTERED_PAGES[backwards], *bounds, SCAN_LIMIT, limit, *conditions.parameters())
    return [EventRow._make(row) for row in rows]


async def find_scan_end(
    tx: Transaction, room_id: RoomId, *, after: OrderKey | None, up_to: OrderKey | None, backwards: bool
) -> OrderKey | None:
    """The key of the last event that a filtered page looked at; None if it came to the end of the range."""
    bounds = (room_id, *(after or LOWEST), *(up_to or HIGHEST))
    row = await tx.fetchrow(_SCAN_ENDS[backwards], *bounds, SCAN_LIMIT - 1)
    return None if row is None else OrderKey(*row)


class TimedEvent(NamedTuple):
    """An event, when its server says that it was sent, and its place in the room."""

    event_id: EventId
    origin_server_ts: int
    order: OrderKey


async def list_by_time(
    tx: Transaction, room_id: RoomId, ts: int, *, backwards: bool, limit: int, behind: OrderKey | None = None
) -> list[TimedEvent]:
    """The events nearest to a time, at it and before if `backwards`, else at it and after; nearest first.

    Args:
        behind: the place of the last event of the page before, whose time is `ts`.
    """
    place = behind or (HIGHEST if backwards else LOWEST)
    rows = await tx.fetch(_BY_TIMES[backwards], room_id, ts, *place, limit)
    return [TimedEvent(row[0], row[1], OrderKey(row[2], row[3])) for row in rows]
