"""What other servers are still to be sent: rows of PDUs and EDUs, in order, for each destination.

Whoever adds rows touches the destination's own row in the same statement, under its lock; the sender takes that lock
before it looks whether anything is left (`tessera.storage.federation_destinations.settle`), so that no row is
overlooked. A destination that has failed for a while gets no row an event: the rooms that have news for it are noted
once, and their newest events are looked up when it answers again.

Spec: S-S API §Transactions.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from hashlib import sha256
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, ServerName
from tessera.storage.database import Transaction

MAX_PDUS = 50  # of one transaction. Spec: §Transactions
MAX_EDUS = 100
MAX_WAITING_TO_DEVICE = 5_000  # of a destination that fails


class Lane(IntEnum):
    """EDUs go out lane by lane."""

    TO_DEVICE = 0
    KEYS = 1
    RECEIPTS = 2


class NewPdu(NamedTuple):
    """An event that a destination is to be sent."""

    destination: ServerName
    room_id: RoomId
    event_id: EventId


class NewEdu(NamedTuple):
    """An EDU that a destination is to be sent.

    Attributes:
        edu: the JSON object {"edu_type", "content"}.
        subject: while the destination fails a later EDU of the same subject replaces this one; '' is kept for sure.
    """

    destination: ServerName
    lane: Lane
    edu: bytes
    subject: str = ""


class QueuedPdu(NamedTuple):
    """A PDU in a queue; its bytes lie in the room's shard."""

    seq: int
    room_id: RoomId
    event_id: EventId


class QueuedEdu(NamedTuple):
    """An EDU in a queue."""

    seq: int
    edu: bytes


# A destination that is not there yet, or whose row says that nothing waits, is touched; the others are locked only,
# which ON CONFLICT does by itself. In the order of their names, so that two of these statements cannot deadlock.
_TOUCH = """
touched AS (
    INSERT INTO accounts.federation_destinations AS d (destination, bucket, pending)
    SELECT destination, bucket, true FROM wanted ORDER BY destination
    ON CONFLICT (destination) DO UPDATE
    SET pending = true, due_at = CASE WHEN d.failures = 0 THEN now() ELSE d.due_at END
    WHERE NOT d.pending
)
"""

_GIVEN = """
named AS (SELECT * FROM unnest($1::text[], $2::integer[]) AS named (destination, bucket)),
silent AS (
    SELECT destination FROM accounts.federation_destinations
    WHERE destination = ANY($1::text[]) AND catching_up
)
"""

_ADD_PDUS = f"""
WITH {_GIVEN},
given AS (
    SELECT * FROM unnest($3::text[], $4::text[], $5::text[]) WITH ORDINALITY AS g (destination, room_id, event_id, ord)
),
marked AS (
    INSERT INTO accounts.federation_marks (destination, room_id)
    SELECT DISTINCT destination, room_id FROM given WHERE destination IN (SELECT destination FROM silent)
    ORDER BY destination, room_id
    ON CONFLICT DO NOTHING RETURNING destination
),
queued AS (
    INSERT INTO accounts.federation_pdus (destination, room_id, event_id)
    SELECT destination, room_id, event_id FROM given
    WHERE destination NOT IN (SELECT destination FROM silent) ORDER BY ord
    RETURNING destination
),
wanted AS (
    SELECT * FROM named
    WHERE destination IN (SELECT destination FROM marked UNION ALL SELECT destination FROM queued)
),
{_TOUCH}
SELECT 1
"""  # noqa: S608 -- constant text

_ADD_EDUS = f"""
WITH {_GIVEN},
given AS (
    SELECT * FROM unnest($3::text[], $4::smallint[], $5::bytea[], $6::text[])
        WITH ORDINALITY AS g (destination, lane, edu, subject, ord)
),
single AS (
    INSERT INTO accounts.federation_edus (destination, lane, edu)
    SELECT destination, lane, edu FROM given
    WHERE lane = {int(Lane.TO_DEVICE)} OR destination NOT IN (SELECT destination FROM silent) ORDER BY ord
    RETURNING destination
),
replaced AS (
    INSERT INTO accounts.federation_edus AS e (destination, lane, edu, key)
    SELECT DISTINCT ON (destination, subject) destination, lane, edu, subject FROM given
    WHERE lane = {int(Lane.KEYS)} AND destination IN (SELECT destination FROM silent)
    ORDER BY destination, subject, ord DESC
    ON CONFLICT (destination, key) WHERE key IS NOT NULL DO UPDATE SET edu = EXCLUDED.edu, seq = EXCLUDED.seq
    RETURNING destination
),
wanted AS (
    SELECT * FROM named
    WHERE destination IN (SELECT destination FROM single UNION ALL SELECT destination FROM replaced)
),
{_TOUCH}
SELECT 1
"""  # noqa: S608  constant text

_LIST_PDUS = f"""
SELECT q.destination, p.seq, p.room_id, p.event_id
FROM unnest($1::text[]) AS q (destination)
CROSS JOIN LATERAL (
    SELECT seq, room_id, event_id FROM accounts.federation_pdus
    WHERE destination = q.destination ORDER BY seq LIMIT {MAX_PDUS}
) p
"""  # noqa: S608  constant text

_LIST_EDUS = f"""
SELECT q.destination, e.seq, e.edu
FROM unnest($1::text[]) AS q (destination)
CROSS JOIN LATERAL (
    SELECT lane, seq, edu FROM accounts.federation_edus
    WHERE destination = q.destination ORDER BY lane, seq LIMIT {MAX_EDUS}
) e
ORDER BY e.lane, e.seq
"""  # noqa: S608  constant text

_TAKE_MARKS = """
DELETE FROM accounts.federation_marks WHERE destination = $1 AND room_id IN (
    SELECT room_id FROM accounts.federation_marks WHERE destination = $1 ORDER BY room_id LIMIT $2
)
RETURNING room_id
"""

_ADD_MISSED = """
INSERT INTO accounts.federation_pdus (destination, room_id, event_id)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
"""

_LIST_MARKED = """
SELECT DISTINCT destination FROM accounts.federation_marks WHERE destination = ANY($1::text[])
"""


def bucket_of(destination: ServerName, buckets: int) -> int:
    """The bucket of a destination: a stable hash, the same in every process and release."""
    return int.from_bytes(sha256(destination.encode()).digest()[:8], "big") % buckets


async def add_pdus(tx: Transaction, pdus: Sequence[NewPdu], buckets: int) -> None:
    """Queue events, in this order. A replay after the same transaction's commit sends them once more."""
    if pdus:
        destinations = _named((pdu.destination for pdu in pdus), buckets)
        await tx.execute(_ADD_PDUS, *destinations, *_columns(pdus))


async def add_edus(tx: Transaction, edus: Sequence[NewEdu], buckets: int) -> None:
    """Queue EDUs, in this order. A destination that fails gets no receipts, and of keys the newest of each subject."""
    if edus:
        destinations = _named((edu.destination for edu in edus), buckets)
        await tx.execute(_ADD_EDUS, *destinations, *_columns(edus))


async def list_pdus(tx: Transaction, destinations: Sequence[ServerName]) -> dict[ServerName, list[QueuedPdu]]:
    """The first events of each queue, as many as one transaction carries."""
    found: dict[ServerName, list[QueuedPdu]] = {}
    for destination, *fields in await tx.fetch(_LIST_PDUS, list(destinations)):
        found.setdefault(destination, []).append(QueuedPdu(*fields))
    return found


async def list_edus(tx: Transaction, destinations: Sequence[ServerName]) -> dict[ServerName, list[QueuedEdu]]:
    """The first EDUs of each queue by lane, as many as one transaction carries."""
    found: dict[ServerName, list[QueuedEdu]] = {}
    for destination, *fields in await tx.fetch(_LIST_EDUS, list(destinations)):
        found.setdefault(destination, []).append(QueuedEdu(*fields))
    return found


async def list_marked(tx: Transaction, destinations: Sequence[ServerName]) -> list[ServerName]:
    """Those of the destinations that have missed something in rooms."""
    return [ServerName(row[0]) for row in await tx.fetch(_LIST_MARKED, list(destinations))]


async def take_marks(tx: Transaction, destination: ServerName, limit: int) -> list[RoomId]:
    """Take some rooms out of what a destination has missed; the caller queues their newest events in the same
    transaction, and reads them after this: whoever marks a room meanwhile waits for its end.
    """
    return [RoomId(row[0]) for row in await tx.fetch(_TAKE_MARKS, destination, limit)]


async def add_missed(tx: Transaction, pdus: Sequence[NewPdu]) -> None:
    """Queue the newest events of rooms whose marks this transaction has taken."""
    if pdus:
        await tx.execute(_ADD_MISSED, *_columns(pdus))


def _named(destinations: Iterable[ServerName], buckets: int) -> tuple[list[ServerName], list[int]]:
    names = sorted(set(destinations))
    return names, [bucket_of(name, buckets) for name in names]


def _columns(rows: Sequence[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]
