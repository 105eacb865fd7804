"""What application services are still to be told: an ordered queue for each, and how its service has answered.

Events are queued by name, in the transaction that moves the consumer's cursor; of receipts and the like the newest of
each subject is kept. A transaction lies in its service's row, with its ID and its bytes, from before it is sent until
the service has taken it. Times are PostgreSQL's.

Spec: Application Service API §Pushing events.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import orjson

from matrixcore.identifiers import EventId, RoomId
from tessera.records import Receipt
from tessera.storage.consumer_cursors import Cursor
from tessera.storage.database import Transaction

MAX_EVENTS = 100  # of one transaction
MAX_EPHEMERAL = 100
MAX_COUNTED = 100_000  # a longer queue is told as this
MAX_ERROR_LENGTH = 300


class NewEvent(NamedTuple):
    """An event that a service is to be told.

    Attributes:
        aside: a JSON object with what the room's shard does not have; see `services.appservice.composing`.
    """

    service_id: str
    room_id: RoomId
    event_id: EventId
    aside: bytes | None = None


class NewEphemeral(NamedTuple):
    """Something passing that a service is to be told; a later one of the same subject takes its place."""

    service_id: str
    subject: str
    room_id: RoomId
    body: bytes


def receipt_news(service_id: str, room_id: RoomId, receipt: Receipt) -> NewEphemeral:
    """A receipt: the newest of its user, type and thread; the body is [event ID, type, user ID, data]."""
    subject = f"receipt {room_id} {receipt.user_id} {receipt.receipt_type} {receipt.thread_id}"
    data: dict[str, object] = {"ts": receipt.ts}
    if receipt.thread_id:
        data["thread_id"] = receipt.thread_id
    body = orjson.dumps([receipt.event_id, receipt.receipt_type, receipt.user_id, data])
    return NewEphemeral(service_id, subject, room_id, body)


class QueuedEvent(NamedTuple):
    """An event in a queue."""

    seq: int
    room_id: RoomId
    event_id: EventId
    aside: bytes | None


class QueuedEphemeral(NamedTuple):
    """Something passing in a queue."""

    seq: int
    room_id: RoomId
    body: bytes


class DueService(NamedTuple):
    """A service that is to be told something now; a transaction that was made before is sent first."""

    service_id: str
    failures: int
    retry_seconds: float  # the last pause
    txn_id: str | None
    txn_body: bytes | None


class NewTransaction(NamedTuple):
    """A transaction to be sent; the rows that it carries go when it has arrived."""

    service_id: str
    txn_id: str
    body: bytes
    events: tuple[int, ...]
    ephemeral: tuple[int, ...]


class ServiceStatus(NamedTuple):
    """What an operator sees of a service.

    Attributes:
        queued: events, at most MAX_COUNTED.
        oldest_seconds: how long the first of them has waited.
    """

    service_id: str
    queued: int
    oldest_seconds: float
    failures: int
    failing_since: datetime | None
    due_at: datetime | None
    last_attempt: datetime | None
    last_success: datetime | None
    last_error: str | None


# Whoever applies records of the partition waits here for the other one; the cursor says what is done already.
_LOCK_CURSOR = """
SELECT incarnation, position FROM accounts.consumer_cursors WHERE consumer = $1 AND partition = $2 FOR UPDATE
"""

_FORGET_CURSORS = "DELETE FROM accounts.consumer_cursors WHERE consumer = $1"

_ADD_EVENTS = """
INSERT INTO accounts.appservice_events (service_id, room_id, event_id, aside)
SELECT service_id, room_id, event_id, aside
FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
    WITH ORDINALITY AS g (service_id, room_id, event_id, aside, ord)
ORDER BY ord
"""

_ADD_EPHEMERAL = """
INSERT INTO accounts.appservice_ephemeral AS e (service_id, subject, room_id, body)
SELECT service_id, subject, room_id, body FROM (
    SELECT DISTINCT ON (service_id, subject) * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
        WITH ORDINALITY AS g (service_id, subject, room_id, body, ord)
    ORDER BY service_id, subject, ord DESC
) newest
ORDER BY service_id, subject
ON CONFLICT (service_id, subject) DO UPDATE SET seq = EXCLUDED.seq, room_id = EXCLUDED.room_id, body = EXCLUDED.body
"""

_LIST_DUE = """
SELECT u.service_id, coalesce(s.failures, 0), coalesce(s.retry_seconds, 0), s.txn_id, s.txn_body
FROM unnest($1::text[]) AS u (service_id) LEFT JOIN accounts.appservices s ON s.service_id = u.service_id
WHERE coalesce(s.due_at <= now(), true) AND (
    s.txn_id IS NOT NULL
    OR EXISTS (SELECT FROM accounts.appservice_events e WHERE e.service_id = u.service_id)
    OR EXISTS (SELECT FROM accounts.appservice_ephemeral e WHERE e.service_id = u.service_id))
"""

_LIST_FAILING = "SELECT service_id FROM accounts.appservices WHERE service_id = ANY($1::text[]) AND failures > 0"

_LIST_EVENTS = """
SELECT seq, room_id, event_id, aside FROM accounts.appservice_events WHERE service_id = $1 ORDER BY seq LIMIT $2
"""

_LIST_EPHEMERAL = """
SELECT seq, room_id, body FROM accounts.appservice_ephemeral WHERE service_id = $1 ORDER BY seq LIMIT $2
"""

# Nobody else has kept one meanwhile, or this one is not sent.
_PERSIST = """
INSERT INTO accounts.appservices AS s (service_id, txn_id, txn_body, txn_events, txn_ephemeral)
VALUES ($1, $2, $3, $4::bigint[], $5::bigint[])
ON CONFLICT (service_id) DO UPDATE SET txn_id = EXCLUDED.txn_id, txn_body = EXCLUDED.txn_body,
    txn_events = EXCLUDED.txn_events, txn_ephemeral = EXCLUDED.txn_ephemeral
WHERE s.txn_id IS NULL
RETURNING 1
"""

_SETTLE = """
WITH sent AS (
    SELECT service_id, txn_events, txn_ephemeral FROM accounts.appservices
    WHERE service_id = $1 AND txn_id = $2 FOR UPDATE
), events AS (
    DELETE FROM accounts.appservice_events e USING sent, unnest(sent.txn_events) AS one (seq)
    WHERE e.service_id = sent.service_id AND e.seq = one.seq
), ephemeral AS (
    DELETE FROM accounts.appservice_ephemeral e USING sent, unnest(sent.txn_ephemeral) AS one (seq)
    WHERE e.service_id = sent.service_id AND e.seq = one.seq
)
UPDATE accounts.appservices s
SET txn_id = NULL, txn_body = NULL, txn_events = '{}', txn_ephemeral = '{}', failures = 0, failing_since = NULL,
    retry_seconds = 0, last_error = NULL, last_attempt = now(), last_success = now(), due_at = now()
FROM sent WHERE s.service_id = sent.service_id
"""

_FAIL = """
UPDATE accounts.appservices
SET failures = failures + 1, failing_since = coalesce(failing_since, now()), last_attempt = now(), last_error = $3,
    retry_seconds = $4, due_at = now() + make_interval(secs => $4)
WHERE service_id = $1 AND txn_id = $2
"""

# Rows without a transaction: they cannot be made into one.
_DELETE_EVENTS = "DELETE FROM accounts.appservice_events WHERE service_id = $1 AND seq = ANY($2::bigint[])"

_RESET = """
UPDATE accounts.appservices SET due_at = now(), failures = 0, failing_since = NULL, retry_seconds = 0
WHERE service_id = $1 RETURNING 1
"""

_DROP = (
    "DELETE FROM accounts.appservice_events WHERE service_id = $1",
    "DELETE FROM accounts.appservice_ephemeral WHERE service_id = $1",
    "DELETE FROM accounts.appservices WHERE service_id = $1",
)

_KNOWN = """
SELECT service_id FROM accounts.appservices
UNION (
    WITH RECURSIVE known AS (
        (SELECT service_id FROM accounts.appservice_events ORDER BY service_id LIMIT 1)
        UNION ALL
        SELECT (SELECT e.service_id FROM accounts.appservice_events e WHERE e.service_id > k.service_id
                ORDER BY e.service_id LIMIT 1)
        FROM known k WHERE k.service_id IS NOT NULL
    ) SELECT service_id FROM known WHERE service_id IS NOT NULL
)
"""

_STATUS = """
SELECT u.service_id,
       (SELECT count(*) FROM (
            SELECT FROM accounts.appservice_events e WHERE e.service_id = u.service_id LIMIT $2) counted),
       coalesce((SELECT extract(epoch FROM now() - e.queued_at) FROM accounts.appservice_events e
                 WHERE e.service_id = u.service_id ORDER BY e.seq LIMIT 1), 0)::float8,
       coalesce(s.failures, 0), s.failing_since, s.due_at, s.last_attempt, s.last_success, s.last_error
FROM unnest($1::text[]) AS u (service_id) LEFT JOIN accounts.appservices s ON s.service_id = u.service_id
ORDER BY u.service_id
"""


async def lock_cursor(tx: Transaction, consumer: str, partition: int) -> Cursor:
    """Where the consumer is in a partition, kept until the transaction ends, so that nobody queues the same again."""
    row = await tx.fetchrow(_LOCK_CURSOR, consumer, partition)
    return Cursor(0, 0) if row is None else Cursor(*row)


async def forget_cursors(tx: Transaction, consumer: str) -> None:
    """Nobody is to be told anything now: whoever is, some day, is told what happens from then on."""
    await tx.execute(_FORGET_CURSORS, consumer)


async def add_events(tx: Transaction, events: Sequence[NewEvent]) -> None:
    """Queue events, in this order."""
    if events:
        await tx.execute(_ADD_EVENTS, *(list(column) for column in zip(*events, strict=True)))


async def add_ephemeral(tx: Transaction, passing: Sequence[NewEphemeral]) -> None:
    """Queue what passes; the newest of each subject stays."""
    if passing:
        await tx.execute(_ADD_EPHEMERAL, *(list(column) for column in zip(*passing, strict=True)))


async def list_due(tx: Transaction, service_ids: Sequence[str]) -> list[DueService]:
    """Those of the services that are to be told something now."""
    return [DueService(*row) for row in await tx.fetch(_LIST_DUE, list(service_ids))]


async def list_failing(tx: Transaction, service_ids: Sequence[str]) -> set[str]:
    """Those of the services that did not take what they were sent last."""
    return {row[0] for row in await tx.fetch(_LIST_FAILING, list(service_ids))}


async def list_events(tx: Transaction, service_id: str, limit: int = MAX_EVENTS) -> list[QueuedEvent]:
    """The oldest events of a queue."""
    return [QueuedEvent(*row) for row in await tx.fetch(_LIST_EVENTS, service_id, limit)]


async def list_ephemeral(tx: Transaction, service_id: str, limit: int = MAX_EPHEMERAL) -> list[QueuedEphemeral]:
    """What passes, the longest waiting first."""
    return [QueuedEphemeral(*row) for row in await tx.fetch(_LIST_EPHEMERAL, service_id, limit)]


async def persist(tx: Transaction, new: NewTransaction) -> bool:
    """Keep a transaction before it is sent; False if the service has one already."""
    return await tx.fetchval(_PERSIST, *new[:3], list(new.events), list(new.ephemeral)) is not None


async def settle(tx: Transaction, service_id: str, txn_id: str) -> None:
    """The service has taken the transaction. Repeatable."""
    await tx.execute(_SETTLE, service_id, txn_id)


async def fail(tx: Transaction, service_id: str, txn_id: str, error: str, pause_seconds: float) -> None:
    """The service has not taken it: it is tried again after a pause."""
    await tx.execute(_FAIL, service_id, txn_id, error[:MAX_ERROR_LENGTH], pause_seconds)


async def delete_events(tx: Transaction, service_id: str, seqs: Sequence[int]) -> None:
    """Forget queued events of which nothing is left to tell."""
    await tx.execute(_DELETE_EVENTS, service_id, list(seqs))


async def reset(tx: Transaction, service_id: str) -> bool:
    """Try a service again at once; False if it was never sent anything."""
    return await tx.fetchval(_RESET, service_id) is not None


async def drop(tx: Transaction, service_id: str) -> None:
    """Forget everything that waits for a service. Inside a transaction."""
    for statement in _DROP:
        await tx.execute(statement, service_id)


async def list_known(tx: Transaction) -> list[str]:
    """The services that were ever sent anything, or have a queue."""
    return sorted(row[0] for row in await tx.fetch(_KNOWN))


async def list_status(tx: Transaction, service_ids: Sequence[str]) -> list[ServiceStatus]:
    """How these services stand, by their IDs."""
    return [ServiceStatus(*row) for row in await tx.fetch(_STATUS, list(service_ids), MAX_COUNTED)]
