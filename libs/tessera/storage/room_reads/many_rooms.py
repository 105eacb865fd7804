"""Single events of many rooms with what one user is to these rooms: for search and lists over all rooms."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow
from tessera.storage.room_reads.members import MembershipStep
from tessera.storage.room_reads.rooms import RoomRow, room_with_steps


class Place(NamedTuple):
    """A point of a room's order."""

    room_id: RoomId
    order: OrderKey


_ROOMS = """
SELECT r.room_id, r.partition, r.room_version, r.creator, r.create_event_id, r.joined_count, r.invited_count,
       r.last_position, h.anchors, h.subs, h.memberships, h.event_ids
FROM rooms.rooms r
CROSS JOIN LATERAL (
    SELECT array_agg(anchor ORDER BY anchor, sub) AS anchors, array_agg(sub ORDER BY anchor, sub) AS subs,
           array_agg(membership ORDER BY anchor, sub) AS memberships,
           array_agg(event_id ORDER BY anchor, sub) AS event_ids
    FROM rooms.state_history s WHERE s.room_id = r.room_id AND s.type = 'm.room.member' AND s.state_key = $2
) h
WHERE r.room_id = ANY($1::text[])
"""

# Constant text is put together here; values are always parameters.
_EVENTS = f"""
SELECT e.room_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
WHERE e.rejected IS NULL AND e.soft_failed IS NULL
"""  # noqa: S608  constant text

_NEIGHBOURS = f"""
SELECT w.number, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::bigint[], $3::integer[]) WITH ORDINALITY AS w (room_id, anchor, sub, number)
CROSS JOIN LATERAL (
    SELECT * FROM rooms.events t
    WHERE t.room_id = w.room_id AND (t.anchor, t.sub) {{beyond}} (w.anchor, w.sub) AND t.anchor IS NOT NULL
    ORDER BY t.anchor {{direction}}, t.sub {{direction}} LIMIT $4
) e
"""  # noqa: S608  constant text
_BEFORE = _NEIGHBOURS.format(beyond="<", direction="DESC")
_AFTER = _NEIGHBOURS.format(beyond=">", direction="ASC")

_MEMBERS_AT = """
SELECT w.number, w.user_id, e.pdu
FROM unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::integer[])
    AS w (room_id, anchor, sub, user_id, number)
CROSS JOIN LATERAL (
    SELECT h.event_id FROM rooms.state_history h
    WHERE h.room_id = w.room_id AND h.type = 'm.room.member' AND h.state_key = w.user_id
      AND (h.anchor, h.sub) <= (w.anchor, w.sub)
    ORDER BY h.anchor DESC, h.sub DESC LIMIT 1
) s
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = s.event_id
"""


async def list_rooms_with_steps(
    tx: Transaction, room_ids: Sequence[RoomId], user_id: UserId
) -> dict[RoomId, tuple[RoomRow, list[MembershipStep]]]:
    """Those of the rooms that are known here, with every membership that the user has had in them."""
    found = (room_with_steps(row) for row in await tx.fetch(_ROOMS, list(room_ids), user_id))
    return {room.room_id: (room, steps) for room, steps in found}


async def list_events_of_rooms(
    tx: Transaction, events: Sequence[tuple[RoomId, EventId]]
) -> dict[tuple[RoomId, EventId], EventRow]:
    """Those of the events that exist and are neither rejected nor soft-failed."""
    rows = await tx.fetch(_EVENTS, [one[0] for one in events], [one[1] for one in events])
    return {(row[0], row[1]): EventRow._make(row[1:]) for row in rows}


async def list_neighbours(
    tx: Transaction, places: Sequence[Place], *, backwards: bool, limit: int
) -> list[list[EventRow]]:
    """For each place the `limit` events next to it, nearest first."""
    found: list[list[EventRow]] = [[] for _ in places]
    if limit and places:
        columns = ([one.room_id for one in places], [one.order.anchor for one in places], [p.order.sub for p in places])
        for row in await tx.fetch(_BEFORE if backwards else _AFTER, *columns, limit):
            found[row[0] - 1].append(EventRow._make(row[1:]))
    return found


async def list_member_pdus(
    tx: Transaction, wanted: Sequence[tuple[Place, Sequence[UserId]]]
) -> list[dict[UserId, bytes]]:
    """For each place the member events of some users as they were there."""
    found: dict[int, dict[UserId, bytes]] = defaultdict(dict)
    asked = [
        (place.room_id, *place.order, user_id, number)
        for number, (place, users) in enumerate(wanted)
        for user_id in users
    ]
    if asked:
        for number, user_id, pdu in await tx.fetch(_MEMBERS_AT, *(list(column) for column in zip(*asked, strict=True))):
            found[number][user_id] = pdu
    return [found[number] for number in range(len(wanted))]
