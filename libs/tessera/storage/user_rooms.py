"""The rooms of local users: their memberships in the account store.

Written by two appliers, the projector and the gateway that waited for the command, in any order
and any number of times: a row remembers the (incarnation, position) that set it and yields to
a higher one only. Each change that really changes a row is an entry of the user's log, in the same
transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind, append


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """A membership of a local user as one record of a partition set it.

    Attributes:
        stripped_state: for invites and knocks a JSON array: the stripped state events of the room
            with the user's own member event in it.
    """

    user_id: UserId
    room_id: RoomId
    membership: str
    event_id: EventId
    sender: UserId
    partition: int
    incarnation: int
    position: int
    stripped_state: bytes | None = None


class UserRoom(NamedTuple):
    """One room in the list of a user."""

    room_id: RoomId
    membership: str
    event_id: EventId
    sender: UserId
    partition: int
    incarnation: int
    position: int
    log_position: int
    forgotten: bool
    stripped_state: bytes | None


# Heads first, in the order of user IDs: every writer of the user log takes its locks so.
_LOCK_HEADS = """
INSERT INTO accounts.user_log_heads AS h (user_id, head)
SELECT user_id, 0 FROM unnest($1::text[]) AS i (user_id) ORDER BY user_id
ON CONFLICT (user_id) DO UPDATE SET head = h.head
"""

# A statement of its own after the lock: only its snapshot is sure to see what the lock waited for.
# The body comes without its closing brace; what the row held before is known only here.
_APPLY = """
WITH input AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::int[],
                         $8::bigint[], $9::bytea[], $10::bytea[])
        WITH ORDINALITY AS i (user_id, room_id, membership, event_id, sender, partition, incarnation, position,
                              stripped_state, body, ord)
), newer AS (
    SELECT i.*,
           lead(i.ord) OVER same_room IS NULL AS is_last,
           coalesce(lag(i.membership) OVER same_room, r.membership) AS prev_membership,
           coalesce(lag(i.position) OVER same_room, r.position) AS prev_position
    FROM input i LEFT JOIN accounts.user_rooms r ON r.user_id = i.user_id AND r.room_id = i.room_id
    WHERE r.user_id IS NULL OR (i.incarnation, i.position) > (r.incarnation, r.position)
    WINDOW same_room AS (PARTITION BY i.user_id, i.room_id ORDER BY i.incarnation, i.position)
), placed AS (
    SELECT n.*, h.head + row_number() OVER (PARTITION BY n.user_id ORDER BY n.ord) AS log_position
    FROM newer n JOIN accounts.user_log_heads h ON h.user_id = n.user_id
), moved AS (
    UPDATE accounts.user_log_heads h SET head = p.head
    FROM (SELECT user_id, max(log_position) AS head FROM placed GROUP BY user_id) p
    WHERE h.user_id = p.user_id
    RETURNING h.user_id, h.head
), logged AS (
    INSERT INTO accounts.user_log (user_id, position, kind, room_id, body)
    SELECT user_id, log_position, $11, room_id,
           body || convert_to(',"prev_membership":' || coalesce(to_json(prev_membership)::text, 'null') ||
                              ',"prev_position":' || coalesce(prev_position::text, 'null') || '}', 'UTF8')
    FROM placed
), applied AS (
    INSERT INTO accounts.user_rooms AS r (user_id, room_id, membership, event_id, sender, partition, incarnation,
                                          position, log_position, stripped_state)
    SELECT user_id, room_id, membership, event_id, sender, partition, incarnation, position, log_position,
           stripped_state
    FROM placed WHERE is_last
    ON CONFLICT (user_id, room_id) DO UPDATE SET
        membership = EXCLUDED.membership, event_id = EXCLUDED.event_id, sender = EXCLUDED.sender,
        partition = EXCLUDED.partition, incarnation = EXCLUDED.incarnation, position = EXCLUDED.position,
        log_position = EXCLUDED.log_position, stripped_state = EXCLUDED.stripped_state,
        -- A ban after the user forgot the room does not bring it back; whatever lets the user in does.
        forgotten = r.forgotten AND EXCLUDED.membership IN ('leave', 'ban')
)
SELECT user_id, head FROM moved
"""

_COLUMNS = """room_id, membership, event_id, sender, partition, incarnation, position, log_position, forgotten,
       stripped_state"""

_LIST_ROOMS = f"SELECT {_COLUMNS} FROM accounts.user_rooms WHERE user_id = $1"  # noqa: S608  constant text

_LIST_ROOMS_BY_MEMBERSHIP = f"{_LIST_ROOMS} AND membership = ANY($2::text[]) AND NOT forgotten"

_FIND_ROOM = f"{_LIST_ROOMS} AND room_id = $2"

_LIST_MEMBERSHIPS = """
SELECT room_id, membership FROM accounts.user_rooms WHERE user_id = $1 AND room_id = ANY($2::text[])
"""

_LIST_LOCAL_MEMBERS = "SELECT user_id FROM accounts.user_rooms WHERE room_id = $1 AND membership = $2"

_LIST_SHARED = """
SELECT DISTINCT other.user_id
FROM accounts.user_rooms own
JOIN accounts.user_rooms other ON other.room_id = own.room_id AND other.membership = 'join'
WHERE own.user_id = $1 AND own.membership = 'join'
"""

_SHARES_ROOM = """
SELECT EXISTS (
    SELECT 1 FROM accounts.user_rooms own
    JOIN accounts.user_rooms other USING (room_id)
    WHERE own.user_id = $1 AND own.membership = 'join' AND other.user_id = $2 AND other.membership = 'join'
)
"""

_FORGET = """
UPDATE accounts.user_rooms SET forgotten = true
WHERE user_id = $1 AND room_id = $2 AND membership IN ('leave', 'ban') AND NOT forgotten
RETURNING 1
"""


async def apply_changes(tx: Transaction, changes: Sequence[MembershipChange]) -> dict[UserId, int]:
    """Bring users' room lists up to these changes and tell their logs, in two statements.

    Idempotent: what is not newer than the stored row is ignored. Several changes of one user in one
    room are logged one by one and leave the newest in the row. The body of an entry is the JSON
    object {membership, event_id, sender, partition, incarnation, position, state?, prev_membership, prev_position},
    where the last two are null if the user had none.

    Must run in READ COMMITTED.

    Returns:
        The new heads of the users whose rows really changed.
    """
    distinct = {(c.user_id, c.room_id, c.incarnation, c.position): c for c in changes}
    if not distinct:
        return {}
    unique = sorted(distinct.values(), key=lambda change: (change.incarnation, change.position))
    await tx.execute(_LOCK_HEADS, sorted({change.user_id for change in unique}))
    rows = await tx.fetch(
        _APPLY,
        [change.user_id for change in unique],
        [change.room_id for change in unique],
        [change.membership for change in unique],
        [change.event_id for change in unique],
        [change.sender for change in unique],
        [change.partition for change in unique],
        [change.incarnation for change in unique],
        [change.position for change in unique],
        [change.stripped_state for change in unique],
        [_open_body(change) for change in unique],
        int(UserLogKind.MEMBERSHIP),
    )
    return {UserId(row[0]): row[1] for row in rows}


def _open_body(change: MembershipChange) -> bytes:
    """The log entry's JSON object up to, not with, prev_membership and the closing brace."""
    body: dict[str, object] = {
        "membership": change.membership,
        "event_id": change.event_id,
        "sender": change.sender,
        "partition": change.partition,
        "incarnation": change.incarnation,
        "position": change.position,
    }
    if change.stripped_state is not None:
        body["state"] = orjson.Fragment(change.stripped_state)
    return orjson.dumps(body)[:-1]


async def list_rooms(tx: Transaction, user_id: UserId, memberships: Sequence[str] | None = None) -> list[UserRoom]:
    """All rooms of a user, forgotten ones too; with `memberships` only those that have one of them and are not
    forgotten.
    """
    if memberships is None:
        rows = await tx.fetch(_LIST_ROOMS, user_id)
    else:
        rows = await tx.fetch(_LIST_ROOMS_BY_MEMBERSHIP, user_id, list(memberships))
    return [UserRoom(*row) for row in rows]


async def find_room(tx: Transaction, user_id: UserId, room_id: RoomId) -> UserRoom | None:
    """The user's row of one room."""
    row = await tx.fetchrow(_FIND_ROOM, user_id, room_id)
    return None if row is None else UserRoom(*row)


async def list_memberships(tx: Transaction, user_id: UserId, room_ids: Sequence[RoomId]) -> dict[RoomId, str]:
    """What the user is in those of these rooms that the user has to do with."""
    return {RoomId(row[0]): row[1] for row in await tx.fetch(_LIST_MEMBERSHIPS, user_id, list(room_ids))}


async def list_local_members(tx: Transaction, room_id: RoomId, membership: str = "join") -> list[UserId]:
    """Local users with this membership in the room."""
    return [UserId(row[0]) for row in await tx.fetch(_LIST_LOCAL_MEMBERS, room_id, membership)]


async def list_users_sharing_room(tx: Transaction, user_id: UserId) -> list[UserId]:
    """Local users joined to a room that the user is joined to; the user too, if joined to any."""
    return [UserId(row[0]) for row in await tx.fetch(_LIST_SHARED, user_id)]


async def shares_room(tx: Transaction, user_id: UserId, other: UserId) -> bool:
    """Whether two local users are joined to a room together."""
    shared: bool = await tx.fetchval(_SHARES_ROOM, user_id, other)
    return shared


async def forget(tx: Transaction, user_id: UserId, room_id: RoomId) -> dict[UserId, int]:
    """Mark a left room as forgotten and tell the user's log.

    Returns:
        The user's new head, or nothing if the user has not left the room or had forgotten it before.
    """
    await tx.execute(_LOCK_HEADS, [user_id])
    if await tx.fetchval(_FORGET, user_id, room_id) is None:
        return {}
    return await append(tx, [LogEntry(user_id, UserLogKind.FORGET, room_id)])
