"""What sliding sync reads of many rooms of one shard at once, beside `sync_reads`.

A statement takes parallel arrays, one element a room or a wish; nothing here is asked room by room. Nothing here
judges who may see what.

Spec: MSC4186; DESIGN.md section 5.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, StateKey, UserId
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow

BUMP_TYPES = (
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "org.matrix.msc3381.poll.start",
    "m.beacon_info",
    "org.matrix.msc3672.beacon_info",
)
BUMP_WINDOW = 200  # events looked at; in a room with none of BUMP_TYPES among them the oldest of these counts


class RoomFactsRow(NamedTuple):
    """What places a room in lists.

    Attributes:
        activity_ms, bump_ms: when its newest event, and its newest one of BUMP_TYPES, were received.
        create_pdu: of m.room.create; None if the state has none.
    """

    room_id: RoomId
    activity_ms: int
    bump_ms: int
    is_encrypted: bool
    create_pdu: bytes | None


class DepartedRoomRow(NamedTuple):
    """A room that a user is not in, or not yet.

    Attributes:
        received_ms: when the user's member event was received; None if it is not here.
        create_pdu: of m.room.create; None if the state is not here.
    """

    room_id: RoomId
    received_ms: int | None
    was_joined: bool
    is_encrypted: bool
    create_pdu: bytes | None


class StateWish(NamedTuple):
    """State of a room that changed above a position; -1 for all of it.

    Attributes:
        type, state_key: None is any.
        with_members: whether member events count where `type` is None.
    """

    room_id: RoomId
    type: str | None
    state_key: str | None
    after: int
    with_members: bool = True


# The scan for the bump ends with the first event that is one: nearly always the first or second.
_FACTS = """
SELECT r.room_id, coalesce(newest.received_ms, r.created_ms),
       coalesce(bump.received_ms, oldest.received_ms, r.created_ms),
       EXISTS (
           SELECT FROM rooms.current_state s
           WHERE s.room_id = r.room_id AND s.type = 'm.room.encryption' AND s.state_key = ''
       ),
       made.pdu
FROM rooms.rooms r
LEFT JOIN rooms.current_state c ON c.room_id = r.room_id AND c.type = 'm.room.create' AND c.state_key = ''
LEFT JOIN rooms.events made ON made.room_id = c.room_id AND made.event_id = c.event_id
LEFT JOIN LATERAL (
    SELECT e.received_ms FROM rooms.events e WHERE e.room_id = r.room_id AND e.anchor IS NOT NULL
    ORDER BY e.anchor DESC, e.sub DESC LIMIT 1
) newest ON true
LEFT JOIN LATERAL (
    SELECT t.received_ms FROM (
        SELECT e.type, e.received_ms FROM rooms.events e WHERE e.room_id = r.room_id AND e.anchor IS NOT NULL
        ORDER BY e.anchor DESC, e.sub DESC LIMIT $3
    ) t
    WHERE t.type = ANY($2::text[]) LIMIT 1
) bump ON true
LEFT JOIN LATERAL (
    SELECT e.received_ms FROM rooms.events e WHERE e.room_id = r.room_id AND e.anchor IS NOT NULL
    ORDER BY e.anchor DESC, e.sub DESC OFFSET $3 LIMIT 1
) oldest ON bump.received_ms IS NULL
WHERE r.room_id = ANY($1::text[])
"""

_DEPARTED = """
SELECT w.room_id, e.received_ms,
       EXISTS (
           SELECT FROM rooms.state_history h
           WHERE h.room_id = w.room_id AND h.type = 'm.room.member' AND h.state_key = $3 AND h.membership = 'join'
       ),
       EXISTS (
           SELECT FROM rooms.current_state s
           WHERE s.room_id = w.room_id AND s.type = 'm.room.encryption' AND s.state_key = ''
       ),
       made.pdu
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
LEFT JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
LEFT JOIN rooms.current_state c ON c.room_id = w.room_id AND c.type = 'm.room.create' AND c.state_key = ''
LEFT JOIN rooms.events made ON made.room_id = c.room_id AND made.event_id = c.event_id
"""

# Three ways to name state, each with the look-up that fits it.
_WISHED = f"""
SELECT s.room_id, {EVENT_COLUMNS} FROM (
    SELECT c.room_id, c.event_id
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS w (room_id, type, state_key, after)
    JOIN rooms.current_state c
        ON c.room_id = w.room_id AND c.type = w.type AND c.state_key = w.state_key AND c.anchor > w.after
    UNION
    SELECT c.room_id, c.event_id
    FROM unnest($5::text[], $6::text[], $7::bigint[]) AS w (room_id, type, after)
    JOIN rooms.current_state c ON c.room_id = w.room_id AND c.type = w.type AND c.anchor > w.after
    UNION
    SELECT c.room_id, c.event_id
    FROM unnest($8::text[], $9::text[], $10::bigint[], $11::boolean[]) AS w (room_id, state_key, after, with_members)
    JOIN rooms.current_state c ON c.room_id = w.room_id AND c.anchor > w.after
        AND (w.state_key IS NULL OR c.state_key = w.state_key) AND (w.with_members OR c.type <> 'm.room.member')
) s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
"""  # noqa: S608  constant text

_GONE = """
SELECT DISTINCT w.room_id, h.type, h.state_key
FROM unnest($1::text[], $2::bigint[]) AS w (room_id, after)
JOIN rooms.state_history h ON h.room_id = w.room_id AND h.anchor > w.after AND h.event_id IS NULL
WHERE NOT EXISTS (
    SELECT FROM rooms.current_state c
    WHERE c.room_id = h.room_id AND c.type = h.type AND c.state_key = h.state_key
)
"""


async def list_facts(tx: Transaction, room_ids: Collection[RoomId]) -> list[RoomFactsRow]:
    """What places those of the rooms that are known here."""
    return [RoomFactsRow(*row) for row in await tx.fetch(_FACTS, list(room_ids), list(BUMP_TYPES), BUMP_WINDOW)]


async def list_departed(tx: Transaction, user_id: UserId, rooms: Mapping[RoomId, EventId]) -> list[DepartedRoomRow]:
    """What is known of rooms that the user is not in.

    Args:
        rooms: room -> the user's member event.
    """
    rows = await tx.fetch(_DEPARTED, list(rooms), list(rooms.values()), user_id)
    return [DepartedRoomRow(*row) for row in rows]


async def list_state(tx: Transaction, wishes: Sequence[StateWish]) -> dict[RoomId, list[EventRow]]:
    """The current state events that any of the wishes names, each once, in no order."""
    if not wishes:
        return {}
    exact = [one for one in wishes if one.type is not None and one.state_key is not None]
    typed = [one for one in wishes if one.type is not None and one.state_key is None]
    others = [one for one in wishes if one.type is None]
    rows = await tx.fetch(
        _WISHED,
        *_columns(exact, "room_id", "type", "state_key", "after"),
        *_columns(typed, "room_id", "type", "after"),
        *_columns(others, "room_id", "state_key", "after", "with_members"),
    )
    found: dict[RoomId, list[EventRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(EventRow._make(row[1:]))
    return found


async def list_gone(tx: Transaction, after: Mapping[RoomId, int]) -> dict[RoomId, list[StateKey]]:
    """The keys of each room's state that lost their events above a position and have none now."""
    found: dict[RoomId, list[StateKey]] = {}
    for row in await tx.fetch(_GONE, list(after), list(after.values())):
        found.setdefault(row[0], []).append((row[1], row[2]))
    return found


def _columns(wishes: Sequence[StateWish], *names: str) -> list[list[object]]:
    return [[getattr(wish, name) for wish in wishes] for name in names]
