"""The servers that we send to: what is under way to each, when it is tried next, and how it has answered.

Times are PostgreSQL's. A transaction lies in the destination's row, with its ID and its bytes, from before it is sent
until the destination has taken it.

Spec: S-S API §Transactions.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from matrixcore.identifiers import RoomId, ServerName
from tessera.storage.database import Transaction
from tessera.storage.federation_queue import MAX_WAITING_TO_DEVICE, Lane

CATCH_UP_AFTER = 2  # failures in a row
MAX_BACKLOG = 2_000  # events in the queue of a destination that answers; above that it gets each room's newest
MAX_ERROR_LENGTH = 300


class DueDestination(NamedTuple):
    """A destination that is to be sent something now."""

    destination: ServerName
    bucket: int
    failures: int
    retry_seconds: float  # its last pause
    txn_id: str | None
    txn_body: bytes | None
    is_unproven: bool  # it has neither taken anything yet nor failed to


class NewTransaction(NamedTuple):
    """A transaction to be sent; the rows that it carries go when it has arrived."""

    destination: ServerName
    txn_id: str
    body: bytes
    pdus: tuple[int, ...]
    edus: tuple[int, ...]


class Failure(NamedTuple):
    """A destination that did not take its transaction."""

    destination: ServerName
    error: str
    pause_seconds: float


class DestinationStatus(NamedTuple):
    """What an operator sees of a destination."""

    destination: ServerName
    pending: bool
    catching_up: bool
    failures: int
    failing_since: datetime | None
    due_at: datetime
    retry_seconds: float
    last_attempt: datetime | None
    last_success: datetime | None
    last_error: str | None


# Of those that became due at once nobody comes first for its name: a thousand names of one dead operator may be there.
_DUE = """
(SELECT destination, bucket, failures, retry_seconds, txn_id, txn_body, failures = 0 AND last_success IS NULL
 FROM accounts.federation_destinations
 WHERE pending AND bucket = ANY($1::integer[]) AND due_at <= now() AND destination <> ALL($2::text[]) AND {which}
 ORDER BY due_at, hashtext(destination) LIMIT {limit})
"""
_LIST_DUE = "UNION ALL".join(
    (
        _DUE.format(which="failures = 0 AND last_success IS NOT NULL", limit="$3"),
        _DUE.format(which="failures = 0 AND last_success IS NULL", limit="$4"),
        _DUE.format(which="failures > 0", limit="$5"),
    )
)

_LIST_FAILING = """
SELECT destination FROM accounts.federation_destinations
WHERE destination = ANY($1::text[]) AND (failures > 0 OR txn_id IS NOT NULL)
"""

# Nobody else has persisted one meanwhile, or this one is not sent.
_PERSIST = """
UPDATE accounts.federation_destinations d
SET txn_id = given.txn_id, txn_body = given.body, txn_pdus = given.pdus::bigint[], txn_edus = given.edus::bigint[]
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[])
    AS given (destination, txn_id, body, pdus, edus)
WHERE d.destination = given.destination AND d.txn_id IS NULL
RETURNING d.destination
"""

_LOCK = """
SELECT destination FROM accounts.federation_destinations
WHERE destination = ANY($1::text[]) ORDER BY destination FOR UPDATE
"""

_DELETE_SENT = f"""
WITH sent AS (
    SELECT d.destination, d.txn_pdus, d.txn_edus FROM accounts.federation_destinations d
    JOIN unnest($1::text[], $2::text[]) AS given (destination, txn_id)
        ON d.destination = given.destination AND d.txn_id = given.txn_id
), pdus AS (
    DELETE FROM accounts.federation_pdus p USING sent, unnest(sent.txn_pdus) AS one (seq)
    WHERE p.destination = sent.destination AND p.seq = one.seq
)
DELETE FROM accounts.federation_edus e USING sent, unnest(sent.txn_edus) AS one (seq),
    generate_series({int(min(Lane))}, {int(max(Lane))}) AS lanes (number)
WHERE e.destination = sent.destination AND e.lane = lanes.number AND e.seq = one.seq
"""  # noqa: S608  constant text

_WAITS = """
EXISTS (SELECT FROM accounts.federation_pdus p WHERE p.destination = d.destination)
OR EXISTS (SELECT FROM accounts.federation_edus e WHERE e.destination = d.destination)
OR EXISTS (SELECT FROM accounts.federation_marks m WHERE m.destination = d.destination)
"""

_SETTLE = f"""
UPDATE accounts.federation_destinations d
SET txn_id = NULL, txn_body = NULL, txn_pdus = '{{}}', txn_edus = '{{}}', failures = 0, failing_since = NULL,
    retry_seconds = 0, last_error = NULL, last_attempt = now(), last_success = now(), due_at = now(),
    pending = ({_WAITS}),
    catching_up = d.catching_up
        AND EXISTS (SELECT FROM accounts.federation_marks m WHERE m.destination = d.destination)
FROM unnest($1::text[], $2::text[]) AS given (destination, txn_id)
WHERE d.destination = given.destination AND d.txn_id = given.txn_id
RETURNING d.destination, d.pending
"""  # noqa: S608 -- constant text

_SETTLE_IDLE = f"""
UPDATE accounts.federation_destinations d SET pending = ({_WAITS})
WHERE d.destination = ANY($1::text[]) AND d.txn_id IS NULL
"""  # noqa: S608  constant text

_FAIL = f"""
UPDATE accounts.federation_destinations d
SET failures = d.failures + 1, failing_since = coalesce(d.failing_since, now()), last_attempt = now(),
    last_error = given.error, retry_seconds = given.pause, due_at = now() + make_interval(secs => given.pause),
    catching_up = d.catching_up OR d.failures + 1 >= {CATCH_UP_AFTER}
FROM unnest($1::text[], $2::text[], $3::float8[]) AS given (destination, error, pause)
WHERE d.destination = given.destination
"""  # noqa: S608  constant text

_FALL_SILENT = """
UPDATE accounts.federation_destinations SET catching_up = true WHERE destination = ANY($1::text[])
"""

# What waits event by event is noted room by room, but for what the transaction under way carries.
_NOTE_ROOMS = """
WITH silent AS (
    SELECT destination, txn_pdus, txn_edus FROM accounts.federation_destinations
    WHERE destination = ANY($1::text[]) AND catching_up
), gone AS (
    DELETE FROM accounts.federation_pdus p USING silent
    WHERE p.destination = silent.destination AND p.seq <> ALL(silent.txn_pdus)
    RETURNING p.destination, p.room_id
), receipts AS (
    DELETE FROM accounts.federation_edus e USING silent
    WHERE e.destination = silent.destination AND e.lane = $2 AND e.seq <> ALL(silent.txn_edus)
)
INSERT INTO accounts.federation_marks (destination, room_id)
SELECT DISTINCT destination, room_id FROM gone ORDER BY destination, room_id ON CONFLICT DO NOTHING
"""

_TRIM_TO_DEVICE = f"""
DELETE FROM accounts.federation_edus e USING (
    SELECT d.destination, d.txn_edus, (
        SELECT seq FROM accounts.federation_edus k
        WHERE k.destination = d.destination AND k.lane = $2
        ORDER BY seq DESC OFFSET {MAX_WAITING_TO_DEVICE} LIMIT 1
    ) AS up_to
    FROM accounts.federation_destinations d WHERE d.destination = ANY($1::text[])
) old
WHERE e.destination = old.destination AND e.lane = $2 AND e.seq <= old.up_to AND e.seq <> ALL(old.txn_edus)
"""  # noqa: S608  constant text

_COUNT_BACKLOG = f"""
SELECT q.destination FROM unnest($1::text[]) AS q (destination)
WHERE EXISTS (
    SELECT FROM accounts.federation_pdus WHERE destination = q.destination ORDER BY seq OFFSET {MAX_BACKLOG} LIMIT 1
)
"""  # noqa: S608  constant text

# A server that asks us something can be reached again, perhaps. One that was tried a moment ago gets that moment to
# finish its start: it may say nothing else for hours.
_NOTE_LIFE = """
UPDATE accounts.federation_destinations SET due_at = greatest(now(), last_attempt + interval '5 seconds')
WHERE destination = $1 AND failures > 0 AND due_at > greatest(now(), last_attempt + interval '5 seconds')
RETURNING true
"""

_RESET = """
UPDATE accounts.federation_destinations SET due_at = now(), failures = 0, failing_since = NULL, retry_seconds = 0
WHERE destination = $1 RETURNING true
"""

_STATUS_COLUMNS = (
    "destination, pending, catching_up, failures, failing_since, due_at, retry_seconds, last_attempt, last_success,"
    " last_error"
)

_FIND = f"SELECT {_STATUS_COLUMNS} FROM accounts.federation_destinations WHERE destination = $1"  # noqa: S608  constant text

_COUNT_ROWS = """
SELECT (SELECT count(*) FROM accounts.federation_pdus WHERE destination = $1),
       (SELECT count(*) FROM accounts.federation_edus WHERE destination = $1),
       (SELECT count(*) FROM accounts.federation_marks WHERE destination = $1)
"""

_FIGURES = """
SELECT count(*) FILTER (WHERE pending), count(*) FILTER (WHERE failures > 0), count(*) FILTER (WHERE catching_up),
       count(*), coalesce(max(extract(epoch FROM now() - due_at)) FILTER (WHERE pending AND failures = 0), 0)::float8
FROM accounts.federation_destinations WHERE bucket = ANY($1::integer[])
"""


async def list_due(
    tx: Transaction, buckets: Sequence[int], busy: Sequence[ServerName], healthy: int, unproven: int, failing: int
) -> list[DueDestination]:
    """Who is to be sent something now, the longest waiting first.

    Args:
        busy: destinations with a transaction under way here.
        healthy: how many at most of those that answered last.
        unproven: of those that were never sent anything, and
        failing: of those that did not answer last.
    """
    limits = healthy, unproven, failing
    return [DueDestination(*row) for row in await tx.fetch(_LIST_DUE, list(buckets), list(busy), *limits)]


async def list_failing(tx: Transaction, destinations: Sequence[ServerName]) -> set[ServerName]:
    """Those of the destinations that did not take what they were sent last, or have a transaction under way."""
    return {ServerName(row[0]) for row in await tx.fetch(_LIST_FAILING, list(destinations))}


async def persist(tx: Transaction, transactions: Sequence[NewTransaction]) -> set[ServerName]:
    """Keep transactions before they are sent; those destinations for which it is done."""
    if not transactions:
        return set()
    rows = await tx.fetch(
        _PERSIST,
        [one.destination for one in transactions],
        [one.txn_id for one in transactions],
        [one.body for one in transactions],
        [_array(one.pdus) for one in transactions],
        [_array(one.edus) for one in transactions],
    )
    return {ServerName(row[0]) for row in rows}


async def settle(tx: Transaction, taken: Sequence[tuple[ServerName, str]]) -> list[ServerName]:
    """(destination, transaction ID): it has been taken. Those for which more waits."""
    if not taken:
        return []
    columns = [one[0] for one in taken], [one[1] for one in taken]
    await tx.fetch(_LOCK, columns[0])
    await tx.execute(_DELETE_SENT, *columns)
    return [ServerName(row[0]) for row in await tx.fetch(_SETTLE, *columns) if row[1]]


async def settle_idle(tx: Transaction, destinations: Sequence[ServerName]) -> None:
    """Nothing could be found for these destinations: they wait no longer, unless something has come just now."""
    if destinations:
        await tx.fetch(_LOCK, list(destinations))
        await tx.execute(_SETTLE_IDLE, list(destinations))


async def fail(tx: Transaction, failures: Sequence[Failure]) -> None:
    """These did not take their transactions; they are tried again after their pause."""
    if not failures:
        return
    destinations = [one.destination for one in failures]
    await tx.fetch(_LOCK, destinations)
    errors = [one.error[:MAX_ERROR_LENGTH].replace("\0", "") for one in failures]
    await tx.execute(_FAIL, destinations, errors, [one.pause_seconds for one in failures])
    await tx.execute(_NOTE_ROOMS, destinations, Lane.RECEIPTS)
    await tx.execute(_TRIM_TO_DEVICE, destinations, Lane.TO_DEVICE)


async def shorten_backlogs(tx: Transaction, destinations: Sequence[ServerName]) -> None:
    """Destinations that take less than comes get each room's newest event instead of all."""
    long = [row[0] for row in await tx.fetch(_COUNT_BACKLOG, list(destinations))]
    if long:
        await tx.fetch(_LOCK, long)
        await tx.execute(_FALL_SILENT, long)
        await tx.execute(_NOTE_ROOMS, long, Lane.RECEIPTS)


async def note_life(tx: Transaction, destination: ServerName) -> bool:
    """A destination has shown life: if it waits for another try, that is now, or some seconds after the last one.

    Answers whether it was going to wait longer.
    """
    return await tx.fetchval(_NOTE_LIFE, destination) is not None


async def reset(tx: Transaction, destination: ServerName) -> bool:
    """Forget the failures of a destination, so that it is tried now; False if we have never sent it anything."""
    return await tx.fetchval(_RESET, destination) is not None


async def find_status(tx: Transaction, destination: ServerName) -> DestinationStatus | None:
    """How a destination stands; None if we have never sent it anything."""
    row = await tx.fetchrow(_FIND, destination)
    return None if row is None else DestinationStatus(*row)


async def count_rows(tx: Transaction, destination: ServerName) -> tuple[int, int, int]:
    """(events, EDUs, rooms to catch up with) that wait for a destination."""
    row = await tx.fetchrow(_COUNT_ROWS, destination)
    return row[0], row[1], row[2]


class QueueFigures(NamedTuple):
    """Destinations in some buckets, for the metrics."""

    pending: int
    failing: int
    catching_up: int
    known: int
    oldest_seconds: float  # how long somebody who answers has been waiting


async def measure(tx: Transaction, buckets: Sequence[int]) -> QueueFigures:
    """Count the destinations of some buckets."""
    return QueueFigures(*await tx.fetchrow(_FIGURES, list(buckets)))


def _array(numbers: Sequence[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


ORDERS = {
    "destination": "destination",
    "retry_last_ts": "last_attempt",
    "retry_interval": "retry_seconds",
    "failure_ts": "failing_since",
    "last_successful_stream_ordering": "last_success",
}


async def list_statuses(
    tx: Transaction,
    *,
    search: str = "",
    order_by: str = "destination",
    descending: bool = False,
    start: int,
    limit: int,
) -> tuple[list[DestinationStatus], int]:
    """A page of destinations, and how many there are.

    Args:
        search: part of their names.
        order_by: a key of Synapse's admin API. Raises KeyError for another one.
    """
    pattern = "%" + search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    direction = "DESC" if descending else "ASC"
    rows = await tx.fetch(
        f"SELECT {_STATUS_COLUMNS} FROM accounts.federation_destinations WHERE destination LIKE $1"  # noqa: S608  constant text
        f" ORDER BY {ORDERS[order_by]} {direction} NULLS LAST, destination OFFSET $2 LIMIT $3",
        pattern,
        start,
        limit,
    )
    total = await tx.fetchval(
        "SELECT count(*) FROM accounts.federation_destinations WHERE destination LIKE $1", pattern
    )
    return [DestinationStatus(*row) for row in rows], total


async def list_queued_rooms(tx: Transaction, destination: ServerName, limit: int) -> list[RoomId]:
    """Rooms of which something waits for a destination."""
    rows = await tx.fetch(
        "SELECT room_id FROM accounts.federation_pdus WHERE destination = $1"
        " UNION SELECT room_id FROM accounts.federation_marks WHERE destination = $1 ORDER BY 1 LIMIT $2",
        destination,
        limit,
    )
    return [RoomId(row[0]) for row in rows]
