"""What /sync reads of rooms: many rooms of one shard in each statement, all in one snapshot.

A statement takes parallel arrays, one element a room; nothing here is asked room by room. Nothing here
judges who may see what.

Spec: C-S API §Syncing; DESIGN.md section 5.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, EventRow
from tessera.storage.room_reads.members import MembershipStep
from tessera.storage.room_reads.relations import MAX_BUNDLED_REFERENCES, Bundle
from tessera.sync_token import Point

EVERYTHING = OrderKey(-1, -(1 << 30))  # below every event
HERO_COUNT = 5
RECEIPTS_PER_ROOM = 1_000

_MEMBER = "m.room.member"


class SyncRoom(NamedTuple):
    """A room as the snapshot has it, with what it is to one user.

    Attributes:
        steps: the memberships that the user has had in it, oldest first.
        heroes: the first members, if the room has no event that names it; see `list_heroes`.
        members_changed: whether any membership changed above the position that the client knows.
        name_pdu, alias_pdu: of m.room.name and m.room.canonical_alias.
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


class StateRow(NamedTuple):
    """A change of current state: the event that a key got, None where a resolution took it away."""

    key: tuple[str, str]
    event: EventRow | None


class ReceiptRow(NamedTuple):
    """A public receipt; thread_id '' for unthreaded."""

    receipt_type: str
    user_id: UserId
    thread_id: str
    event_id: EventId
    ts: int


# last_position rises with every record of the room, so an unchanged room costs one look at its row. The heads come
# with the rooms, and alone where a partition has nothing new. Heroes: joined and invited members in the order of
# their arrival; the others stand in where there are none.
_ROOMS = """
SELECT p.partition, p.incarnation, p.head,
       r.room_id, r.room_version, r.joined_count, r.invited_count, name.pdu, alias.pdu, hero.users,
       EXISTS (
           SELECT FROM rooms.state_history h
           WHERE h.room_id = r.room_id AND h.anchor > w.floor AND h.type = 'm.room.member'
       ),
       own.anchors, own.subs, own.memberships, own.event_ids
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
"""

_HEADS = "SELECT partition, incarnation, head FROM rooms.partitions WHERE partition = ANY($1::integer[])"

# A partition that was moved away says nothing of its head here.
_REWOUND = """
SELECT p.partition FROM unnest($1::integer[], $2::integer[], $3::bigint[]) AS w (partition, incarnation, position)
JOIN rooms.partitions p ON p.partition = w.partition AND p.state = 'active'
WHERE (p.incarnation, p.head) < (w.incarnation, w.position)
"""

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
"""  # noqa: S608

# The state at a point is the current one with the keys that changed above the point turned back.
_STATES = f"""
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::integer[], $5::bigint[]) AS w (room_id, anchor, sub, up_to)
), later AS MATERIALIZED (
    SELECT w.room_id, w.anchor, w.sub, w.up_to, h.type, h.state_key, h.event_id, h.anchor AS changed_anchor,
           h.sub AS changed_sub
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
        SELECT DISTINCT room_id, anchor, sub, type, state_key FROM later WHERE $4 OR type <> 'm.room.member'
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
"""  # noqa: S608

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
"""  # noqa: S608

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
"""  # noqa: S608

_RECEIPTS = """
SELECT w.room_id, c.receipt_type, c.user_id, c.thread_id, c.event_id, c.ts
FROM unnest($1::text[], $2::bigint[]) AS w (room_id, after)
CROSS JOIN LATERAL (
    SELECT * FROM rooms.receipts r WHERE r.room_id = w.room_id AND r.position > w.after
    ORDER BY r.position DESC LIMIT $3
) c
"""

# Joined and invited members in the order of their arrival; the others stand in where there are none.
_HEROES = """
SELECT w.room_id, m.state_key
FROM unnest($1::text[]) AS w (room_id)
CROSS JOIN LATERAL (
    SELECT c.state_key, c.membership, c.anchor, c.sub FROM rooms.current_state c
    WHERE c.room_id = w.room_id AND c.type = 'm.room.member' AND c.state_key <> $2
    ORDER BY c.membership NOT IN ('join', 'invite'), c.anchor, c.sub LIMIT $3
) m
ORDER BY w.room_id, m.membership NOT IN ('join', 'invite'), m.anchor, m.sub
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

_SHARED_ROOMS = """
SELECT DISTINCT c.state_key FROM rooms.current_state c
WHERE c.type = 'm.room.member' AND c.membership = 'join' AND c.room_id = ANY($1::text[])
  AND c.state_key = ANY($2::text[])
"""

_ROOMS_OF_USERS = """
SELECT state_key, room_id FROM rooms.current_state
WHERE type = 'm.room.member' AND membership = 'join' AND state_key = ANY($1::text[])
"""

_MEMBERS_OF_ROOMS = """
SELECT DISTINCT state_key FROM rooms.current_state
WHERE room_id = ANY($1::text[]) AND type = 'm.room.member' AND membership = 'join'
"""

# Who came or went: the membership at the point against the current one.
_MEMBER_MOVES = """
SELECT moved.state_key, coalesce(c.membership, 'leave') = 'join'
FROM unnest($1::text[], $2::bigint[]) AS w (room_id, after)
CROSS JOIN LATERAL (
    SELECT DISTINCT h.state_key FROM rooms.state_history h
    WHERE h.room_id = w.room_id AND h.anchor > w.after AND h.type = 'm.room.member'
) moved
LEFT JOIN LATERAL (
    SELECT h.membership FROM rooms.state_history h
    WHERE h.room_id = w.room_id AND h.type = 'm.room.member' AND h.state_key = moved.state_key AND h.anchor <= w.after
    ORDER BY h.anchor DESC, h.sub DESC LIMIT 1
) before ON true
LEFT JOIN rooms.current_state c
    ON c.room_id = w.room_id AND c.type = 'm.room.member' AND c.state_key = moved.state_key
WHERE (coalesce(before.membership, 'leave') = 'join') <> (coalesce(c.membership, 'leave') = 'join')
"""

_RELATIONS_TO = """
SELECT w.room_id, w.event_id, c.rel_type, c.sender
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events c ON c.room_id = w.room_id AND c.relates_to = w.event_id
WHERE c.rel_type IS NOT NULL AND c.redacted_by IS NULL AND c.anchor IS NOT NULL
"""

_HAVE_BUNDLES = """
SELECT w.room_id, w.event_id, c.rel_type, array_agg(c.event_id ORDER BY c.anchor, c.sub),
       bool_or(c.sender = $4)
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w (room_id, event_id, up_to)
JOIN rooms.events c ON c.room_id = w.room_id AND c.relates_to = w.event_id AND c.anchor <= w.up_to
WHERE c.rel_type IN ('m.replace', 'm.reference', 'm.thread') AND c.redacted_by IS NULL
GROUP BY w.room_id, w.event_id, c.rel_type
"""

# The newest valid edit by time: same sender and type as its target, neither being state.
_EDITS = f"""
SELECT DISTINCT ON (e.room_id, e.relates_to) e.room_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events original ON original.room_id = w.room_id AND original.event_id = w.event_id
JOIN rooms.events e ON e.room_id = w.room_id AND e.relates_to = w.event_id AND e.rel_type = 'm.replace'
WHERE e.state_key IS NULL AND e.redacted_by IS NULL AND e.anchor IS NOT NULL AND original.redacted_by IS NULL
  AND original.state_key IS NULL AND original.rel_type IS DISTINCT FROM 'm.replace'
  AND e.sender = original.sender AND e.type = original.type
ORDER BY e.room_id, e.relates_to, e.origin_server_ts DESC, e.event_id DESC
"""  # noqa: S608

_EVENTS = f"""
SELECT e.room_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
"""  # noqa: S608


class OwnRoom(NamedTuple):
    """A room as it is now, with its counters at `last_position`; where the user's stay ended, if it did."""

    room_id: RoomId
    left_at: int | None
    last_position: int
    notify: int
    highlight: int


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
        found[room_id] = SyncRoom(room_id, row[0], row[4], row[5], row[6], row[7], row[8], row[9], row[10], steps)
    return heads, found


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
        found[row[0]].append(EventRow(*row[1:]))
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
            state.append(EventRow(*row[3:]))
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
        event = EventRow(*row[1:])
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
    return StateRow((row[1], row[2]), None if row[3] is None else EventRow(*row[3:]))


async def list_receipts(tx: Transaction, after: Mapping[RoomId, int]) -> dict[RoomId, list[ReceiptRow]]:
    """The newest public receipts that arrived above each room's position, at most RECEIPTS_PER_ROOM of a room."""
    found: dict[RoomId, list[ReceiptRow]] = defaultdict(list)
    for row in await tx.fetch(_RECEIPTS, list(after), list(after.values()), RECEIPTS_PER_ROOM):
        found[row[0]].append(ReceiptRow(*row[1:]))
    return found


async def list_heroes(
    tx: Transaction, room_ids: Collection[RoomId], user_id: UserId | None
) -> dict[RoomId, list[UserId]]:
    """The first HERO_COUNT members of each room without the user; for no user one more, so that any may be left out.

    Spec: C-S API §Calculating the display name for a room.
    """
    found: dict[RoomId, list[UserId]] = {room_id: [] for room_id in room_ids}
    for row in await tx.fetch(_HEROES, list(room_ids), user_id or "", HERO_COUNT + (user_id is None)):
        found[row[0]].append(row[1])
    return found


async def list_own_rooms(tx: Transaction, user_id: UserId, joined: Mapping[RoomId, int]) -> list[OwnRoom]:
    """The rooms that exist here, with the counters of the main timeline.

    Args:
        joined: room -> position of the user's join; the first leave above it ends the stay.
    """
    return [OwnRoom(*row) for row in await tx.fetch(_OWN_ROOMS, user_id, list(joined), list(joined.values()))]


async def list_joined_among(tx: Transaction, room_ids: Collection[RoomId], user_ids: Collection[UserId]) -> set[UserId]:
    """Those of the users who are joined to any of the rooms."""
    return {row[0] for row in await tx.fetch(_SHARED_ROOMS, list(room_ids), list(user_ids))}


async def list_rooms_of_users(tx: Transaction, user_ids: Collection[UserId]) -> list[tuple[UserId, RoomId]]:
    """(user, room) for each room of this shard that any of the users is joined to."""
    return [(row[0], row[1]) for row in await tx.fetch(_ROOMS_OF_USERS, list(user_ids))]


async def list_joined_users(tx: Transaction, room_ids: Collection[RoomId]) -> set[UserId]:
    """Everybody who is joined to any of the rooms."""
    return {row[0] for row in await tx.fetch(_MEMBERS_OF_ROOMS, list(room_ids))}


async def list_moved_members(tx: Transaction, after: Mapping[RoomId, int]) -> tuple[set[UserId], set[UserId]]:
    """(came, went): who joined or is no longer joined since each room's position; one may be both, in two rooms."""
    came: set[UserId] = set()
    went: set[UserId] = set()
    for user_id, is_joined in await tx.fetch(_MEMBER_MOVES, list(after), list(after.values())):
        (came if is_joined else went).add(user_id)
    return came, went


async def list_relations_to(
    tx: Transaction, events: Sequence[tuple[RoomId, EventId]]
) -> dict[tuple[RoomId, EventId], list[tuple[str, str]]]:
    """(rel_type, sender) of what relates to each of the events."""
    found: dict[tuple[RoomId, EventId], list[tuple[str, str]]] = defaultdict(list)
    for row in await tx.fetch(_RELATIONS_TO, [one[0] for one in events], [one[1] for one in events]):
        found[row[0], row[1]].append((row[2], row[3]))
    return found


async def list_room_bundles(
    tx: Transaction, events: Mapping[RoomId, tuple[int, Sequence[EventId]]], reader: UserId
) -> dict[RoomId, dict[EventId, Bundle]]:
    """What is to be bundled with events of many rooms: one statement where nothing relates to them, else three.

    Args:
        events: room -> (anchor of the last event that the reader may see, events).
    """
    asked = [(room_id, event_id, up_to) for room_id, (up_to, ids) in events.items() for event_id in ids]
    bundles: dict[RoomId, dict[EventId, Bundle]] = defaultdict(dict)
    edited: list[tuple[RoomId, EventId]] = []
    latest: dict[tuple[RoomId, EventId], Bundle] = {}
    columns = [list(column) for column in zip(*asked, strict=True)]
    for room_id, event_id, rel_type, children, participated in await tx.fetch(_HAVE_BUNDLES, *columns, reader):
        bundle = bundles[room_id].setdefault(event_id, Bundle())
        if rel_type == "m.reference":
            bundle.references = list(children[:MAX_BUNDLED_REFERENCES])
        elif rel_type == "m.thread":
            bundle.thread_count, bundle.participated = len(children), participated
            latest[room_id, children[-1]] = bundle
            edited.append((room_id, children[-1]))
        else:
            edited.append((room_id, event_id))
    if latest:
        for row in await tx.fetch(_EVENTS, [key[0] for key in latest], [key[1] for key in latest]):
            latest[row[0], row[1]].thread_latest = EventRow(*row[1:])
    if edited:
        for row in await tx.fetch(_EDITS, [one[0] for one in edited], [one[1] for one in edited]):
            edit = EventRow(*row[1:])
            if edit.relates_to is not None:
                bundles[row[0]].setdefault(edit.relates_to, Bundle()).edit = edit
    return bundles
