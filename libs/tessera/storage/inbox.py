"""The inbox: PDUs of other servers, stored before their sender is answered.

Rows end in the writer's commit: deleted with the event that they became, parked until their
ancestors have arrived (`writer_batch`, sections inbox_gone, inbox_parked and missing), or left
unsigned until the room's policy server has been asked about them (inbox_unsigned). One that
breaks the writer is dead, and nobody looks at it until its dead letter is replayed.

Spec: none; DESIGN.md section 6.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, ServerName
from tessera.storage.database import Transaction
from tessera.storage.partitions import PartitionMoved

# The answer has the rows of events that lay here already, too: naming them again does no harm. An event that was asked
# for, as an outlier or as history, and is sent as part of the DAG is neither any more, and is named until it is taken;
# likewise an outlier that is asked for as part of the DAG. It is not parked either: the writer may just have stored the
# outlier that it was, and what that waited for with it.
_ADD = """
INSERT INTO rooms.inbox (partition, room_id, origin, event_id, pdu, received_ms, state, outlier, state_before, below)
SELECT * FROM unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bigint[], $7::text[],
                     $8::boolean[], $9::bytea[], $10::bigint[])
WHERE NOT EXISTS (SELECT FROM rooms.partitions p WHERE p.partition = ANY($1::integer[]) AND p.state = 'moved')
ON CONFLICT (room_id, event_id) DO UPDATE SET outlier = inbox.outlier AND excluded.outlier,
    below = CASE WHEN inbox.outlier THEN excluded.below
                 WHEN excluded.state = 'new' AND excluded.below IS NULL THEN NULL ELSE inbox.below END,
    state = CASE WHEN inbox.state = 'staged' OR (inbox.state = 'parked' AND inbox.outlier AND NOT excluded.outlier)
                 THEN excluded.state ELSE inbox.state END,
    state_before = coalesce(inbox.state_before, excluded.state_before)
RETURNING inbox_id
"""

_COLUMNS = "inbox_id, origin, event_id, pdu, state, outlier, state_before, below, policy_asked"

_LOAD = f"""
SELECT {_COLUMNS} FROM rooms.inbox WHERE room_id = $1 AND inbox_id = ANY($2::bigint[]) AND state <> 'dead'
"""  # noqa: S608 -- constant text

# Staged ancestors first, so that a flood of parked rows cannot hide them.
_LOAD_WAITING = f"""
SELECT {_COLUMNS} FROM rooms.inbox WHERE room_id = $1 AND state IN ('parked', 'staged')
ORDER BY state = 'staged' DESC, inbox_id LIMIT $2
"""  # noqa: S608  constant text

_LOAD_WAITING_FOR = f"""
SELECT {_COLUMNS} FROM rooms.inbox
WHERE inbox_id IN (
    SELECT inbox_id FROM rooms.missing_events WHERE room_id = $1 AND missing_event_id = ANY($2::text[])
)
ORDER BY inbox_id LIMIT $3
"""  # noqa: S608  constant text

_REVIVE = "UPDATE rooms.inbox SET state = 'new' WHERE inbox_id = ANY($1::bigint[]) AND state = 'dead'"

_CLAIM_NEW = """
UPDATE rooms.inbox SET named_at = now() WHERE inbox_id = ANY(ARRAY(
    SELECT inbox_id FROM rooms.inbox WHERE state = 'new' AND named_at < now() - $1 * interval '1 second'
    ORDER BY named_at LIMIT $2 FOR UPDATE SKIP LOCKED
)) RETURNING partition, room_id, inbox_id
"""

# Whoever asks has a while for it; if it dies, somebody else asks.
_CLAIM_UNSIGNED = """
UPDATE rooms.inbox SET named_at = now() + make_interval(secs => $2) WHERE inbox_id = ANY(ARRAY(
    SELECT inbox_id FROM rooms.inbox WHERE room_id = $1 AND state = 'unsigned' AND named_at <= now()
    ORDER BY inbox_id LIMIT $3 FOR UPDATE SKIP LOCKED
)) RETURNING inbox_id, event_id, pdu
"""
_LIST_UNSIGNED = "SELECT DISTINCT room_id FROM rooms.inbox WHERE state = 'unsigned' AND named_at <= now() LIMIT $1"
# Named again by who has asked, and by the sweeper where that one has died.
_NOTE_ASKED = """
UPDATE rooms.inbox i SET pdu = w.pdu, state = 'new', policy_asked = true, named_at = now()
FROM unnest($1::bigint[], $2::bytea[]) AS w (inbox_id, pdu) WHERE i.inbox_id = w.inbox_id AND i.state = 'unsigned'
"""

_COUNT = "SELECT count(*) FROM (SELECT FROM rooms.inbox WHERE room_id = $1 LIMIT $2) AS lying"

_LIST_MISSING = """
SELECT missing_event_id, bool_and(as_outlier) FROM rooms.missing_events WHERE room_id = $1
GROUP BY missing_event_id ORDER BY min(inbox_id) LIMIT $2
"""


class NewInboxRow(NamedTuple):
    """A PDU to be stored: its signatures have been verified, nothing else."""

    partition: int
    room_id: RoomId
    origin: ServerName
    event_id: EventId
    pdu: bytes
    received_ms: int
    state: str = "new"  # or staged, for an ancestor that was fetched
    outlier: bool = False  # wanted as an auth event only
    state_before: bytes | None = None  # JSON array of event IDs, for an event from behind a gap
    below: int | None = None  # anchor of the live event under which this one is backfilled


class InboxRow(NamedTuple):
    """A PDU that waits for the writer."""

    inbox_id: int
    origin: ServerName
    event_id: EventId
    pdu: bytes
    state: str  # new, parked, unsigned or staged; dead ones are never loaded
    outlier: bool
    state_before: bytes | None = None
    below: int | None = None
    policy_asked: bool = False  # the room's policy server has been asked for a signature


class UnsignedRow(NamedTuple):
    """A PDU about which the room's policy server is to be asked."""

    inbox_id: int
    event_id: EventId
    pdu: bytes


class MissingEvent(NamedTuple):
    """What parked PDUs of a room wait for."""

    event_id: EventId
    as_outlier: bool  # no ancestor of any of them: it suffices as an outlier


async def add(tx: Transaction, rows: Sequence[NewInboxRow]) -> list[int]:
    """Store PDUs of different events; their ids in this order, and in that of earlier ones where they lay here.

    Raises:
        PartitionMoved: one of the partitions is written elsewhere now; nothing is stored.
    """
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in NewInboxRow._fields]
    ids = [row[0] for row in await tx.fetch(_ADD, *columns)]
    if rows and not ids:
        raise PartitionMoved("the partition is being moved")
    return ids


async def load(tx: Transaction, room_id: RoomId, inbox_ids: Sequence[int]) -> list[InboxRow]:
    """The rows that are still there and alive, in the order of the ids that are asked for."""
    found = {row[0]: InboxRow(*row) for row in await tx.fetch(_LOAD, room_id, list(inbox_ids))}
    return [found[inbox_id] for inbox_id in dict.fromkeys(inbox_ids) if inbox_id in found]


async def load_waiting(tx: Transaction, room_id: RoomId, limit: int) -> list[InboxRow]:
    """Parked PDUs of a room and the ancestors that were fetched for them, these first."""
    return [InboxRow(*row) for row in await tx.fetch(_LOAD_WAITING, room_id, limit)]


async def load_waiting_for(
    tx: Transaction, room_id: RoomId, event_ids: Sequence[EventId], limit: int
) -> list[InboxRow]:
    """Parked PDUs that wait for one of the events, among others perhaps."""
    return [InboxRow(*row) for row in await tx.fetch(_LOAD_WAITING_FOR, room_id, list(event_ids), limit)]


async def revive(tx: Transaction, inbox_ids: Sequence[int]) -> None:
    """Let dead rows be taken in again by a command that names them."""
    await tx.execute(_REVIVE, list(inbox_ids))


async def claim_new(tx: Transaction, lying_seconds: float, limit: int) -> dict[tuple[int, RoomId], list[int]]:
    """Rows that no command has taken in for a while: (partition, room) -> inbox ids, to be named once more.

    Nobody else gets them for as long.
    """
    by_room: dict[tuple[int, RoomId], list[int]] = {}
    for partition, room_id, inbox_id in await tx.fetch(_CLAIM_NEW, lying_seconds, limit):
        by_room.setdefault((partition, room_id), []).append(inbox_id)
    return {key: sorted(inbox_ids) for key, inbox_ids in by_room.items()}


async def count(tx: Transaction, room_id: RoomId, limit: int) -> int:
    """How many rows of a room lie here, counted up to a limit."""
    lying: int = await tx.fetchval(_COUNT, room_id, limit)
    return lying


async def list_missing(tx: Transaction, room_id: RoomId, limit: int) -> list[MissingEvent]:
    """The events that parked PDUs of a room wait for, those of the oldest first."""
    return [MissingEvent(*row) for row in await tx.fetch(_LIST_MISSING, room_id, limit)]


async def claim_unsigned(tx: Transaction, room_id: RoomId, lease_seconds: float, limit: int) -> list[UnsignedRow]:
    """PDUs of a room that its policy server is to be asked about; nobody else gets them for so long."""
    return [UnsignedRow(*row) for row in await tx.fetch(_CLAIM_UNSIGNED, room_id, lease_seconds, limit)]


async def list_unsigned_rooms(tx: Transaction, limit: int) -> list[RoomId]:
    """Rooms with PDUs that their policy servers are to be asked about, and that nobody has claimed."""
    return [RoomId(row[0]) for row in await tx.fetch(_LIST_UNSIGNED, limit)]


async def note_asked(tx: Transaction, pdus: Mapping[int, bytes]) -> None:
    """Policy servers have been asked: row -> the PDU, with their signature if they gave one."""
    await tx.execute(_NOTE_ASKED, list(pdus), list(pdus.values()))
