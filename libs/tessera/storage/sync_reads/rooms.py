"""The rooms of a user as one snapshot has them: what is new in them, counters, receipts."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey, RecordKind
from tessera.storage.database import Transaction
from tessera.storage.room_reads.members import MembershipStep
from tessera.sync_token import Point

HERO_COUNT = 5
RECEIPTS_PER_ROOM = 1_000
MAX_GAPS = 10  # of a room that one answer looks at


class SyncRoom(NamedTuple):
    """A room as the snapshot has it, with what it is to one user.

    Attributes:
        steps: the memberships that the user has had in it, oldest first.
        heroes: the first members, if the room has no event that names it; see `list_heroes`.
        members_changed: whether any membership changed above the position that the client knows.
        name_pdu, alias_pdu: of m.room.name and m.room.canonical_alias.
        purged_anchor: up to where messages have been deleted; 0 if none have.
        gaps: the newest positions of GAP records above the one that the client knows, the newest first.
        breaks: the newest places at which the history here breaks off, likewise.
    """

    room_id: RoomId
    partition: int
    room_version: str
    joined_count: int
    invited_count: int
    name_pdu: bytes | None
    alias_pdu: bytes | None
    heroes: list[UserId] | None
    members_changed: bool
    steps: tuple[MembershipStep, ...]
    purged_anchor: int
    gaps: tuple[int, ...] = ()
    breaks: tuple[OrderKey, ...] = ()

    def newest_gap(self, *, is_fresh: bool, up_to: int) -> OrderKey | None:
        """The point at the newest gap up to a position: a timeline begins above it. None if there is none.

        Args:
            is_fresh: the client is told from the beginning, by the room's whole order.
        """
        if is_fresh:
            return next((OrderKey(one.anchor, one.sub - 1) for one in self.breaks if one.anchor <= up_to), None)
        return next((OrderKey(gap, 0) for gap in self.gaps if gap <= up_to), None)


class KnownRoom(NamedTuple):
    """How far a client knows a room.

    Attributes:
        after: the room is read if it has a record above; -1 reads it anyway.
        floor: the position that the client knows; -1 for nothing.
        incarnation: of that position; where the partition has another one, the room is read anyway.
    """

    after: int
    floor: int
    incarnation: int


class OwnRoom(NamedTuple):
    """A room as it is now, with its counters at `last_position`; where the user's stay ended, if it did."""

    room_id: RoomId
    left_at: int | None
    last_position: int
    notify: int
    highlight: int


class ReceiptRow(NamedTuple):
    """A public receipt; thread_id '' for unthreaded."""

    receipt_type: str
    user_id: UserId
    thread_id: str
    event_id: EventId
    ts: int


# last_position rises with every record of the room, so an unchanged room costs one look at its row. The heads come
# with the rooms, and alone where a partition has nothing new. Heroes: joined and invited members in the order of
# their arrival; the others stand in where there are none. Constant text is put together here.
_ROOMS = f"""
SELECT p.partition, p.incarnation, p.head,
       r.room_id, r.room_version, r.joined_count, r.invited_count, name.pdu, alias.pdu, hero.users,
       EXISTS (
           SELECT FROM rooms.state_history h
           WHERE h.room_id = r.room_id AND h.anchor > w.floor AND h.type = 'm.room.member'
       ),
       own.anchors, own.subs, own.memberships, own.event_ids, r.purged_anchor,
       ARRAY(
           SELECT g.position FROM rooms.records g
           WHERE g.room_id = r.room_id AND g.kind = {int(RecordKind.GAP)} AND g.position > w.floor
           ORDER BY g.position DESC LIMIT {MAX_GAPS}
       ),
       ARRAY(
           SELECT b.anchor FROM rooms.backward_extremities b WHERE b.room_id = r.room_id AND w.floor < 0
           ORDER BY b.anchor DESC, b.sub DESC LIMIT {MAX_GAPS}
       ),
       ARRAY(
           SELECT b.sub FROM rooms.backward_extremities b WHERE b.room_id = r.room_id AND w.floor < 0
           ORDER BY b.anchor DESC, b.sub DESC LIMIT {MAX_GAPS}
       )
FROM rooms.partitions p
LEFT JOIN (
    unnest($1::text[], $2::bigint[], $4::bigint[], $5::integer[]) AS w (room_id, after, floor, incarnation)
    JOIN rooms.rooms r ON r.room_id = w.room_id
) ON r.partition = p.partition AND (r.last_position > w.after OR p.incarnation <> w.incarnation)
LEFT JOIN rooms.current_state ns ON ns.room_id = r.room_id AND ns.type = 'm.room.name' AND ns.state_key = ''
LEFT JOIN rooms.events name ON name.room_id = ns.room_id AND name.event_id = ns.event_id
LEFT JOIN rooms.current_state cs ON cs.room_id = r.room_id AND cs.type = 'm.room.canonical_alias' AND cs.state_key = ''
LEFT JOIN rooms.events alias ON alias.room_id = cs.room_id AND alias.event_id = cs.event_id
LEFT JOIN LATERAL (
    SELECT array_agg(m.state_key ORDER BY m.away, m.anchor, m.sub) AS users FROM (
        SELECT c.state_key, c.membership NOT IN ('join', 'invite') AS away, c.anchor, c.sub FROM rooms.current_state c
        WHERE c.room_id = r.room_id AND c.type = 'm.room.member' AND c.state_key <> $3
        ORDER BY 2, c.anchor, c.sub LIMIT $7
    ) m
) hero ON r.room_id IS NOT NULL AND ns.event_id IS NULL AND cs.event_id IS NULL
LEFT JOIN LATERAL (
    SELECT array_agg(h.anchor ORDER BY h.anchor, h.sub) AS anchors, array_agg(h.sub ORDER BY h.anchor, h.sub) AS subs,
           array_agg(h.membership ORDER BY h.anchor, h.sub) AS memberships,
           array_agg(h.event_id ORDER BY h.anchor, h.sub) AS event_ids
    FROM rooms.state_history h WHERE h.room_id = r.room_id AND h.type = 'm.room.member' AND h.state_key = $3
) own ON true
WHERE p.partition = ANY($6::integer[])
"""  # noqa: S608  constant text

_HEADS = "SELECT partition, incarnation, head FROM rooms.partitions WHERE partition = ANY($1::integer[])"

# A partition that was moved away says nothing of its head here.
_REWOUND = """
SELECT p.partition FROM unnest($1::integer[], $2::integer[], $3::bigint[]) AS w (partition, incarnation, position)
JOIN rooms.partitions p ON p.partition = w.partition AND p.state = 'active'
WHERE (p.incarnation, p.head) < (w.incarnation, w.position)
"""

# Out of the history, as a resolution may have taken the member event away.
_OWN_ROOMS = """
SELECT r.room_id, s.anchor, r.last_position, r.notify_count, r.highlight_all_count
FROM unnest($2::text[], $3::bigint[]) AS w (room_id, joined_at)
JOIN rooms.rooms r ON r.room_id = w.room_id
LEFT JOIN LATERAL (
    SELECT h.anchor FROM rooms.state_history h
    WHERE h.room_id = r.room_id AND h.type = 'm.room.member' AND h.state_key = $1 AND h.anchor > w.joined_at
      AND h.membership IS DISTINCT FROM 'join'
    ORDER BY h.anchor, h.sub LIMIT 1
) s ON true
"""

_RECEIPTS = """
SELECT w.room_id, c.receipt_type, c.user_id, c.thread_id, c.event_id, c.ts
FROM unnest($1::text[], $2::bigint[]) AS w (room_id, after)
CROSS JOIN LATERAL (
    SELECT * FROM rooms.receipts r WHERE r.room_id = w.room_id AND r.position > w.after
    ORDER BY r.position DESC LIMIT $3
) c
"""


async def list_heads(tx: Transaction, partitions: Collection[int]) -> dict[int, Point]:
    """The heads of those of the partitions that lie in this shard."""
    return {row[0]: Point(row[1], row[2]) for row in await tx.fetch(_HEADS, list(partitions))}


async def list_rewound(tx: Transaction, points: Mapping[int, Point]) -> frozenset[int]:
    """The partitions of this shard whose heads are below these points, which somebody was told of."""
    incarnations = [point.incarnation for point in points.values()]
    positions = [point.position for point in points.values()]
    return frozenset(row[0] for row in await tx.fetch(_REWOUND, list(points), incarnations, positions))


async def list_sync_rooms(
    tx: Transaction, user_id: UserId, rooms: Mapping[RoomId, KnownRoom], partitions: Collection[int]
) -> tuple[dict[int, Point], dict[RoomId, SyncRoom]]:
    """The heads of the partitions, and those of the rooms that have something above what the client knows.

    Args:
        partitions: those of all the rooms, and others that a token is to name.
    """
    known = list(rooms.values())
    rows = await tx.fetch(
        _ROOMS,
        list(rooms),
        [one.after for one in known],
        user_id,
        [one.floor for one in known],
        [one.incarnation for one in known],
        list(partitions),
        HERO_COUNT,
    )
    heads: dict[int, Point] = {}
    found: dict[RoomId, SyncRoom] = {}
    for row in rows:
        heads[row[0]] = Point(row[1], row[2])
        if (room_id := row[3]) is None:
            continue
        steps = tuple(
            MembershipStep(OrderKey(anchor, sub), membership or "leave", event_id)
            for anchor, sub, membership, event_id in zip(*(row[at] or () for at in range(11, 15)), strict=True)
        )
        breaks = tuple(OrderKey(anchor, sub) for anchor, sub in zip(row[17], row[18], strict=True))
        found[room_id] = SyncRoom(
            room_id=room_id,
            partition=row[0],
            room_version=row[4],
            joined_count=row[5],
            invited_count=row[6],
            name_pdu=row[7],
            alias_pdu=row[8],
            heroes=row[9],
            members_changed=row[10],
            steps=steps,
            purged_anchor=row[15],
            gaps=tuple(row[16]),
            breaks=breaks,
        )
    return heads, found


async def list_own_rooms(tx: Transaction, user_id: UserId, joined: Mapping[RoomId, int]) -> list[OwnRoom]:
    """The rooms that exist here, with the counters of the main timeline.

    Args:
        joined: room -> position of the user's join; the first leave above it ends the stay.
    """
    return [OwnRoom(*row) for row in await tx.fetch(_OWN_ROOMS, user_id, list(joined), list(joined.values()))]


async def list_receipts(tx: Transaction, after: Mapping[RoomId, int]) -> dict[RoomId, list[ReceiptRow]]:
    """The newest public receipts that arrived above each room's position, at most RECEIPTS_PER_ROOM of a room."""
    found: dict[RoomId, list[ReceiptRow]] = defaultdict(list)
    for row in await tx.fetch(_RECEIPTS, list(after), list(after.values()), RECEIPTS_PER_ROOM):
        found[row[0]].append(ReceiptRow(*row[1:]))
    return found
