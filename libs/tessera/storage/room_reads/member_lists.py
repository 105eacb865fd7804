"""The members of a room with their events, stretch by stretch: a large room has more of them than one answer to a query
should hold.

Members come in the order of the primary key's index. Where a stretch begins and ends is compared by PostgreSQL alone,
whose order of texts need not be Python's.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey, RecordKind
from tessera.storage.database import Transaction

MAX_NEWS = 2_000  # of a room: records, and changes of its state; after more of them nobody looks what they changed


class MemberRow(NamedTuple):
    """A member with what is served of the event, in its served form; see `EventRow`."""

    state_key: UserId
    membership: str | None
    event_id: EventId
    anchor: int | None
    sub: int | None
    origin_server_ts: int
    replaces_state: EventId | None
    redacted_by: EventId | None
    pdu: bytes
    previous_pdu: bytes | None
    redaction_pdu: bytes | None


class MemberChanges(NamedTuple):
    """What happened to the member events of a room since a position.

    Attributes:
        incarnation, position: the newest record of the room that is counted in.
        stretches: numbers of the stretches in which an event came, went or was redacted.
        is_unknown: so much happened that nobody looked.
    """

    incarnation: int
    position: int
    stretches: list[int]
    is_unknown: bool


_COLUMNS = """s.state_key, s.membership, e.event_id, e.anchor, e.sub, e.origin_server_ts, e.replaces_state,
    e.redacted_by, e.pdu,
    CASE WHEN e.replaces_state IS NOT NULL THEN (
        SELECT n.pdu FROM rooms.events n WHERE n.room_id = e.room_id AND n.event_id = e.replaces_state
    ) END,
    CASE WHEN e.redacted_by IS NOT NULL THEN (
        SELECT n.pdu FROM rooms.events n WHERE n.room_id = e.room_id AND n.event_id = e.redacted_by
    ) END"""

# Where changes are looked for, their order and limit keep PostgreSQL from the index in the order of types and users.
# Constant text is put together here; values are always parameters.
_CURRENT = f"""
SELECT {_COLUMNS} FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = $1 AND s.type = 'm.room.member' AND s.state_key > $2 {{up_to}}
ORDER BY s.state_key LIMIT $3
"""  # noqa: S608  constant text
_CURRENT_TO_THE_END = _CURRENT.format(up_to="")
_CURRENT_UP_TO = _CURRENT.format(up_to="AND s.state_key <= $4")

_AT = f"""
SELECT {_COLUMNS} FROM (
    SELECT DISTINCT ON (state_key) room_id, state_key, event_id, membership FROM rooms.state_history
    WHERE room_id = $1 AND type = 'm.room.member' AND state_key > $2 AND (anchor, sub) <= ($4, $5)
    ORDER BY state_key, anchor DESC, sub DESC
) s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
ORDER BY s.state_key LIMIT $3
"""  # noqa: S608  constant text

# A stretch is known by its last member, so the number of ends below a member is the number of its stretch. A redaction
# has a record of its own, and one more when it takes effect on an event with a place in the room's order.
_CHANGES = f"""
WITH news AS MATERIALIZED (
    SELECT g.event_id, g.kind FROM rooms.records g
    WHERE g.room_id = $1 AND g.position > $2 ORDER BY g.position LIMIT $4
), states AS MATERIALIZED (
    SELECT h.type, h.state_key FROM rooms.state_history h
    WHERE h.room_id = $1 AND h.anchor > $2 ORDER BY h.anchor, h.sub LIMIT $4
), changed AS (
    SELECT states.state_key FROM states WHERE states.type = 'm.room.member'
    UNION
    SELECT target.state_key FROM news
    JOIN rooms.events e ON e.room_id = $1 AND e.event_id = news.event_id
    JOIN rooms.events target ON target.room_id = $1 AND target.type = 'm.room.member'
        AND target.event_id = CASE news.kind WHEN {int(RecordKind.REDACTION_APPLIED)} THEN e.event_id ELSE e.redacts END
    WHERE news.kind = {int(RecordKind.REDACTION_APPLIED)} OR e.redacts IS NOT NULL
)
SELECT p.incarnation, r.last_position, ARRAY(
    SELECT DISTINCT (SELECT count(*)::integer FROM unnest($3::text[]) AS s (up_to) WHERE s.up_to < changed.state_key)
    FROM changed
), (SELECT count(*) FROM news) = $4 OR (SELECT count(*) FROM states) = $4
FROM rooms.rooms r JOIN rooms.partitions p ON p.partition = r.partition
WHERE r.room_id = $1
"""  # noqa: S608  constant text

_HAVE_CHANGED = """
SELECT coalesce(bool_or(h.type = 'm.room.member'), false) OR count(*) = $4 FROM (
    SELECT type FROM rooms.state_history WHERE room_id = $1 AND (anchor, sub) > ($2, $3)
    ORDER BY anchor, sub LIMIT $4
) h
"""


async def list_stretch(
    tx: Transaction, room_id: RoomId, after: str, limit: int, *, up_to: str | None = None, at: OrderKey | None = None
) -> list[MemberRow]:
    """The first `limit` members after a user.

    Args:
        after: "" for the first ones.
        up_to: the last user of the stretch, None for the end; not with `at`.
        at: the point of the room's order at which it is asked; None for now.
    """
    if at is not None:
        rows = await tx.fetch(_AT, room_id, after, limit, at.anchor, at.sub)
    elif up_to is not None:
        rows = await tx.fetch(_CURRENT_UP_TO, room_id, after, limit, up_to)
    else:
        rows = await tx.fetch(_CURRENT_TO_THE_END, room_id, after, limit)
    return list(map(MemberRow._make, rows))


async def find_changes(tx: Transaction, room_id: RoomId, since: int, ends: Sequence[str]) -> MemberChanges | None:
    """What happened in the room after a position; None if the room is not known here.

    Args:
        ends: the last users of all stretches but the last one.
    """
    row = await tx.fetchrow(_CHANGES, room_id, since, list(ends), MAX_NEWS)
    return None if row is None else MemberChanges(*row)


async def have_members_changed(tx: Transaction, room_id: RoomId, since: OrderKey) -> bool:
    """Whether a member event came or went above a point of the room's order, or so much happened that nobody looked."""
    changed: bool = await tx.fetchval(_HAVE_CHANGED, room_id, since.anchor, since.sub, MAX_NEWS)
    return changed
