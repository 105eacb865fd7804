"""Our own joins of rooms that live on other servers: the intent, and the state that a resident server has answered.

The intent with its signed event is stored before a resident server hears of it, so that whoever finds it after a crash
can go on. It is somebody's for a while only (`claimed_until`, by PostgreSQL's clock). The state is staged event by
event, checked there, and taken into the room by the writer's commit (`writer_batch`, sections staged_*).

Spec: none; DESIGN.md section 6.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, ServerName, StateKey, UserId
from tessera.storage.database import Transaction
from tessera.storage.partitions import PartitionMoved

KEPT_SECONDS = 3_600  # what has ended

# One join of a room at a time: the others wait for it.
_ADD = """
INSERT INTO rooms.joins (join_id, partition, room_id, user_id, room_version, event_id, pdu, servers, claimed_by,
                         claimed_until)
SELECT $1, $2::integer, $3, $4, $5, $6, $7, $8::text[], $9, clock_timestamp() + make_interval(secs => $10)
WHERE NOT EXISTS (SELECT FROM rooms.partitions p WHERE p.partition = $2 AND p.state = 'moved')
ON CONFLICT (room_id) WHERE state IN ('sending', 'staged') DO NOTHING
RETURNING join_id
"""
_IS_MOVED = "SELECT EXISTS (SELECT FROM rooms.partitions WHERE partition = $1 AND state = 'moved')"

_COLUMNS = "join_id, partition, room_id, user_id, room_version, event_id, pdu, servers, state"
_FIND = f"SELECT {_COLUMNS} FROM rooms.joins WHERE join_id = $1"  # noqa: S608  constant text
_LIST_ACTIVE = "SELECT room_id FROM rooms.joins WHERE room_id = ANY($1::text[]) AND state IN ('sending', 'staged')"
_CLAIM_ABANDONED = f"""
UPDATE rooms.joins SET claimed_by = $1, claimed_until = clock_timestamp() + make_interval(secs => $2)
WHERE join_id IN (
    SELECT join_id FROM rooms.joins WHERE state IN ('sending', 'staged') AND claimed_until < clock_timestamp()
    ORDER BY claimed_until LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING {_COLUMNS}
"""  # noqa: S608  constant text
_RENEW = """
UPDATE rooms.joins SET claimed_until = clock_timestamp() + make_interval(secs => $3)
WHERE join_id = $1 AND claimed_by = $2 AND state IN ('sending', 'staged') RETURNING join_id
"""
_SET_PDU = "UPDATE rooms.joins SET pdu = $2 WHERE join_id = $1 AND state = 'sending'"
_SET_STAGED = "UPDATE rooms.joins SET state = 'staged' WHERE join_id = $1 AND state = 'sending'"
_FAIL = "UPDATE rooms.joins SET state = 'failed', error = $2 WHERE join_id = $1 AND state <> 'done'"
_CLEAR = "DELETE FROM rooms.join_events WHERE join_id = $1"
_LIST_ENDED = "SELECT join_id FROM rooms.joins WHERE state IN ('done', 'failed') LIMIT $1"
_CLEAR_ENDED = "DELETE FROM rooms.join_events WHERE join_id = ANY($1::text[])"
_DELETE_ENDED = """
DELETE FROM rooms.joins
WHERE state IN ('done', 'failed') AND created_at < clock_timestamp() - make_interval(secs => $1)
"""

# An event of the auth chain may be one of the state, too.
_ADD_EVENTS = """
INSERT INTO rooms.join_events (join_id, event_id, type, state_key, sender, membership, depth, origin_server_ts,
                               auth_events, pdu, is_state)
SELECT $1, event_id, type, state_key, sender, membership, depth, origin_server_ts, string_to_array(auth_events, ' '),
       pdu, is_state
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::text[],
            $10::bytea[], $11::boolean[])
     AS e (event_id, type, state_key, sender, membership, depth, origin_server_ts, auth_events, pdu, is_state)
ON CONFLICT (join_id, event_id) DO UPDATE SET is_state = join_events.is_state OR excluded.is_state
"""
_LIST_EDGES = "SELECT event_id, auth_events FROM rooms.join_events WHERE join_id = $1"
_LOAD_PDUS = "SELECT event_id, pdu FROM rooms.join_events WHERE join_id = $1 AND event_id = ANY($2::text[])"
_SET_REJECTED = """
UPDATE rooms.join_events t SET rejected = r.reason
FROM unnest($2::text[], $3::text[]) AS r (event_id, reason) WHERE t.join_id = $1 AND t.event_id = r.event_id
"""
_LOAD_STATE = """
SELECT e.type, e.state_key, e.event_id, e.pdu
FROM unnest($2::text[], $3::text[]) AS w (type, state_key)
JOIN rooms.join_events e ON e.join_id = $1 AND e.type = w.type AND e.state_key = w.state_key
WHERE e.is_state AND e.rejected IS NULL
"""
_COUNT_MEMBERS = """
SELECT substr(state_key, strpos(state_key, ':') + 1), count(*) FILTER (WHERE membership = 'join'),
       count(*) FILTER (WHERE membership = 'invite')
FROM rooms.join_events
WHERE join_id = $1 AND type = 'm.room.member' AND is_state AND rejected IS NULL AND membership IN ('join', 'invite')
GROUP BY 1
"""
_LIST_OWN_MEMBERS = """
SELECT e.event_id, e.pdu, c.membership
FROM rooms.join_events e
LEFT JOIN rooms.current_state c ON c.room_id = $2 AND c.type = e.type AND c.state_key = e.state_key
WHERE e.join_id = $1 AND e.type = 'm.room.member' AND e.is_state AND e.rejected IS NULL
  AND substr(e.state_key, strpos(e.state_key, ':') + 1) = $3 AND e.event_id IS DISTINCT FROM c.event_id
  AND (c.membership IS NOT NULL OR e.membership IN ('join', 'invite', 'knock', 'ban'))
ORDER BY e.state_key LIMIT $4
"""
_LAST_POSITION = "SELECT coalesce(max(position), 0) FROM rooms.records WHERE room_id = $1"

_LIST_WAITING = "SELECT inbox_id FROM rooms.inbox WHERE room_id = $1 AND state = 'new' ORDER BY inbox_id LIMIT $2"


class Join(NamedTuple):
    """A join under way.

    Attributes:
        pdu: the member event; a restricted join's with the resident server's signature once that has signed.
        servers: who may be asked, in this order.
        state: sending, staged (everything is here and checked), done or failed.
    """

    join_id: str
    partition: int
    room_id: RoomId
    user_id: UserId
    room_version: str
    event_id: EventId
    pdu: bytes
    servers: list[ServerName]
    state: str


class StagedEvent(NamedTuple):
    """An event of the state or of its auth chain: hashes and signatures have been checked."""

    event_id: EventId
    type: str
    state_key: str | None
    sender: UserId
    membership: str | None
    depth: int
    origin_server_ts: int
    auth_events: str  # separated by blanks
    pdu: bytes
    is_state: bool


class OwnMember(NamedTuple):
    """A member event of one of this server's users that is not what this server knew; with what it knew."""

    event_id: EventId
    pdu: bytes
    known_membership: str | None


async def add(tx: Transaction, join: Join, claimant: str, seconds: float) -> bool:
    """Begin a join; False if somebody joins the room already.

    Raises:
        PartitionMoved
    """
    row = await tx.fetchval(_ADD, *join[:8], claimant, seconds)
    if row is None and await tx.fetchval(_IS_MOVED, join.partition):
        raise PartitionMoved("the partition is being moved")
    return row is not None


async def find(tx: Transaction, join_id: str) -> Join | None:
    """A join, whatever became of it."""
    row = await tx.fetchrow(_FIND, join_id)
    return None if row is None else Join(*row)


async def list_joining(tx: Transaction, room_ids: Collection[RoomId]) -> set[RoomId]:
    """Those of the rooms that somebody here is joining just now: what comes for them waits in the inbox."""
    return {RoomId(row[0]) for row in await tx.fetch(_LIST_ACTIVE, list(room_ids))}


async def claim_abandoned(tx: Transaction, claimant: str, seconds: float, limit: int) -> list[Join]:
    """Joins whose process has ended; they are the claimant's now."""
    return [Join(*row) for row in await tx.fetch(_CLAIM_ABANDONED, claimant, seconds, limit)]


async def renew(tx: Transaction, join_id: str, claimant: str, seconds: float) -> bool:
    """Keep a join for longer; False if it is not the claimant's any more."""
    return await tx.fetchval(_RENEW, join_id, claimant, seconds) is not None


async def set_pdu(tx: Transaction, join_id: str, pdu: bytes) -> None:
    """The event has got another signature."""
    await tx.execute(_SET_PDU, join_id, pdu)


async def set_staged(tx: Transaction, join_id: str) -> None:
    """Everything is here and checked: the writer may take it."""
    await tx.execute(_SET_STAGED, join_id)


async def fail(tx: Transaction, join_id: str, error: str) -> None:
    """Give a join up."""
    await tx.execute(_FAIL, join_id, error)


async def clear_events(tx: Transaction, join_id: str) -> None:
    """Forget what has been staged."""
    await tx.execute(_CLEAR, join_id, timeout=120)


async def sweep(tx: Transaction, limit: int = 20) -> None:
    """Forget what ended joins had staged, and old ones as a whole."""
    ended = [row[0] for row in await tx.fetch(_LIST_ENDED, limit)]
    if ended:
        await tx.execute(_CLEAR_ENDED, ended, timeout=120)
        await tx.execute(_DELETE_ENDED, KEPT_SECONDS)


async def add_events(tx: Transaction, join_id: str, events: Sequence[StagedEvent]) -> None:
    """Stage events, different ones; those that are there already become state if they are that here."""
    if events:
        await tx.execute(_ADD_EVENTS, join_id, *(list(column) for column in zip(*events, strict=True)))


async def list_edges(tx: Transaction, join_id: str) -> dict[EventId, list[EventId]]:
    """The auth events of each staged event."""
    return {row[0]: row[1] for row in await tx.fetch(_LIST_EDGES, join_id)}


async def load_pdus(tx: Transaction, join_id: str, event_ids: Iterable[EventId]) -> dict[EventId, bytes]:
    """Those of the events that are staged."""
    return {row[0]: row[1] for row in await tx.fetch(_LOAD_PDUS, join_id, list(event_ids))}


async def set_rejected(tx: Transaction, join_id: str, reasons: Sequence[tuple[EventId, str]]) -> None:
    """Events that the authorisation rules reject: they are no state."""
    await tx.execute(_SET_REJECTED, join_id, [one[0] for one in reasons], [one[1] for one in reasons])


async def load_state(
    tx: Transaction, join_id: str, keys: Collection[StateKey]
) -> dict[StateKey, tuple[EventId, bytes]]:
    """What the staged state has under those of the keys that it has: (event ID, PDU)."""
    rows = await tx.fetch(_LOAD_STATE, join_id, [key[0] for key in keys], [key[1] for key in keys])
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}


async def count_members(tx: Transaction, join_id: str) -> tuple[dict[str, int], int]:
    """(joined members by server, invited members) of the staged state."""
    rows = await tx.fetch(_COUNT_MEMBERS, join_id)
    return {row[0]: row[1] for row in rows if row[1]}, sum(row[2] for row in rows)


async def list_own_members(tx: Transaction, join: Join, server_name: ServerName, limit: int) -> list[OwnMember]:
    """What the staged state says of this server's users and this server does not know yet."""
    rows = await tx.fetch(_LIST_OWN_MEMBERS, join.join_id, join.room_id, server_name, limit)
    return [OwnMember(*row) for row in rows]


async def get_last_position(tx: Transaction, room_id: RoomId) -> int:
    """The position of the last record about a room that need not be here; 0 if there is none."""
    position: int = await tx.fetchval(_LAST_POSITION, room_id)
    return position


async def list_waiting_pdus(tx: Transaction, room_id: RoomId, limit: int) -> list[int]:
    """The inbox rows of a room that its writer has not looked at."""
    return [row[0] for row in await tx.fetch(_LIST_WAITING, room_id, limit)]
