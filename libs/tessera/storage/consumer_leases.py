"""Who consumes which partition of room.log: leases in the account store, one for each consumer and partition.

A process keeps one row alive for all its consumers. What consumers do is idempotent and their cursors never go back,
so a lease shares the work out and no more: two who overlap for a moment do no harm, and there are no epochs. All
times are PostgreSQL's.

Spec: none; DESIGN.md section 2, invariant 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.storage.database import Transaction

LEASE_SECONDS = 4.0

_REGISTER = """
WITH made AS (
    INSERT INTO accounts.consumer_leases (consumer, partition)
    SELECT c, p FROM unnest($2::text[]) c CROSS JOIN generate_series(0, $3 - 1) p ON CONFLICT DO NOTHING
)
INSERT INTO accounts.consumer_owners (owner, consumers, expires_at)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => $4))
ON CONFLICT (owner) DO UPDATE SET consumers = excluded.consumers, expires_at = excluded.expires_at
"""

# Two appliers of one consumer may race for what is free: whoever locks a row first has it.
_RENEW = """
WITH me AS (
    UPDATE accounts.consumer_owners SET expires_at = clock_timestamp() + make_interval(secs => $2) WHERE owner = $1
    RETURNING owner, consumers
), living AS MATERIALIZED (
    SELECT owner, consumers FROM accounts.consumer_owners WHERE owner = $1 OR expires_at > clock_timestamp()
)
SELECT l.consumer, array_agg(l.partition ORDER BY l.partition) FILTER (WHERE l.owner = $1),
    count(*), count(*) FILTER (WHERE living.owner IS NULL),
    (SELECT count(*) FROM living other WHERE l.consumer = ANY(other.consumers))
FROM me JOIN accounts.consumer_leases l ON l.consumer = ANY(me.consumers)
LEFT JOIN living ON living.owner = l.owner
GROUP BY l.consumer
"""

_TAKE = """
WITH living AS MATERIALIZED (
    SELECT owner FROM accounts.consumer_owners WHERE expires_at > clock_timestamp()
), free AS (
    SELECT l.consumer, l.partition FROM accounts.consumer_leases l
    WHERE l.consumer = $2 AND l.owner NOT IN (SELECT owner FROM living)
    ORDER BY l.partition LIMIT $3 FOR UPDATE OF l SKIP LOCKED
)
UPDATE accounts.consumer_leases l SET owner = $1 FROM free
WHERE l.consumer = free.consumer AND l.partition = free.partition
RETURNING l.partition
"""

_RELEASE = """
UPDATE accounts.consumer_leases SET owner = '' WHERE owner = $1 AND consumer = $2 AND partition = ANY($3::integer[])
"""
_RELEASE_ALL = "UPDATE accounts.consumer_leases SET owner = '' WHERE owner = $1"
_DELETE_DEAD = """
DELETE FROM accounts.consumer_owners WHERE owner = $1 OR expires_at < clock_timestamp() - interval '1 hour'
"""


@dataclass(frozen=True, slots=True)
class Share:
    """What one consumer of a process has, and what there is.

    Attributes:
        partitions: leased to us.
        free: how many nobody alive has.
        fair: how many each of the living aims at.
    """

    partitions: frozenset[int]
    free: int
    fair: int


async def register(tx: Transaction, owner: str, consumers: Sequence[str], partitions: int) -> None:
    """Begin to be alive, for these consumers of that many partitions. Repeatable."""
    await tx.execute(_REGISTER, owner, list(consumers), partitions, LEASE_SECONDS)


async def renew(tx: Transaction, owner: str) -> Mapping[str, Share] | None:
    """Stay alive, in one statement for all consumers; None if the owner's row is gone."""
    rows = await tx.fetch(_RENEW, owner, LEASE_SECONDS)
    if not rows:
        return None
    return {row[0]: Share(frozenset(row[1] or ()), row[3], -(-row[2] // row[4])) for row in rows}


async def take(tx: Transaction, owner: str, consumer: str, limit: int) -> list[int]:
    """Take at most so many of a consumer's partitions that nobody alive has."""
    return [row[0] for row in await tx.fetch(_TAKE, owner, consumer, limit)]


async def release(tx: Transaction, owner: str, consumer: str, partitions: Sequence[int]) -> None:
    """Give partitions of a consumer up."""
    await tx.execute(_RELEASE, owner, consumer, list(partitions))


async def unregister(tx: Transaction, owner: str) -> None:
    """Give everything up and stop being alive."""
    await tx.execute(_RELEASE_ALL, owner)
    await tx.execute(_DELETE_DEAD, owner)
