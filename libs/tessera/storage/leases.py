"""Who writes which partition: leases for liveness, epochs for safety.

A process keeps one row of `rooms.writers` alive; the leases name its owner. Taking a partition
raises its epoch, which fences everybody who had it before, so that a lease taken too early
costs a pause and never a wrong commit. All times are PostgreSQL's.

Spec: none; DESIGN.md section 2, invariant 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg

from tessera.storage.database import Transaction

LEASE_SECONDS = 4.0
LOCK_PATIENCE_MS = 1_000

_REGISTER = """
INSERT INTO rooms.writers (owner, name, lock_key, expires_at)
VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))
ON CONFLICT (owner) DO UPDATE SET expires_at = excluded.expires_at
"""

# One row more than there are leases, so that an owner without any is told from one whose row is gone.
_RENEW = """
WITH alive AS (
    UPDATE rooms.writers SET expires_at = clock_timestamp() + make_interval(secs => $2) WHERE owner = $1
    RETURNING owner, draining
)
SELECT NULL::integer, NULL::bigint, '', draining FROM alive
UNION ALL SELECT l.partition, l.epoch, l.heir, alive.draining FROM alive JOIN rooms.leases l ON l.owner = alive.owner
"""

# What a session-level advisory lock of one bigint looks like in pg_locks.
_LOCK_IS_HELD = """
EXISTS (
    SELECT 1 FROM pg_locks k
    WHERE k.locktype = 'advisory' AND k.objsubid = 1 AND k.granted
      AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (k.classid::bigint << 32) | k.objid::bigint = w.lock_key
)
"""

_IS_FREE = f"""
(w.owner IS NULL OR w.expires_at <= clock_timestamp() OR (w.lock_key IS NOT NULL AND NOT {_LOCK_IS_HELD}))
"""

# What a writer has is counted by the leases, those that were just handed over to it among them.
_LIST_WRITERS = f"""
SELECT w.owner, w.name, w.draining, count(l.partition)
FROM rooms.writers w LEFT JOIN rooms.leases l ON l.owner = w.owner
WHERE NOT {_IS_FREE}
GROUP BY w.owner ORDER BY w.owner
"""  # noqa: S608 -- constant text

# Looked at several times a second: each writer's lock is looked for once, not once a partition.
_LIST_FREE = f"""
WITH living AS MATERIALIZED (SELECT w.owner FROM rooms.writers w WHERE NOT {_IS_FREE})
SELECT l.partition, l.owner = $1
FROM rooms.partitions p
JOIN rooms.leases l ON l.partition = p.partition
LEFT JOIN living ON living.owner = l.owner
WHERE p.partition = ANY($2::integer[]) AND p.state = 'active' AND (l.owner = $1 OR living.owner IS NULL)
ORDER BY l.partition
"""  # noqa: S608 -- constant text

# `l.epoch = p.epoch` is looked at again after waiting for p's lock: of two takers, the second takes nothing.
_TAKE = f"""
WITH free AS MATERIALIZED (
    SELECT p.partition, p.clean
    FROM rooms.partitions p
    JOIN rooms.leases l ON l.partition = p.partition
    LEFT JOIN rooms.writers w ON w.owner = l.owner
    WHERE p.partition = ANY($2::integer[]) AND p.state = 'active' AND l.epoch = p.epoch
      AND (l.owner = $1 OR {_IS_FREE})
    ORDER BY p.partition
    FOR UPDATE OF p
), taken AS (
    UPDATE rooms.partitions p SET epoch = p.epoch + 1, clean = false
    FROM free WHERE p.partition = free.partition
    RETURNING p.partition, p.epoch, p.incarnation, p.head, p.announced, p.topic_id, p.done_offset, free.clean
), leased AS (
    UPDATE rooms.leases l SET owner = $1, epoch = taken.epoch, heir = '' FROM taken WHERE l.partition = taken.partition
)
SELECT * FROM taken ORDER BY partition
"""  # noqa: S608 -- constant text

# A writer that holds a partition's row in an unfinished statement and is not us: its client is gone or stuck.
_END_BLOCKERS = """
SELECT count(pg_terminate_backend(a.pid)) FROM rooms.partitions p
JOIN pg_stat_activity a ON a.backend_xid = p.xmax AND a.pid <> pg_backend_pid()
WHERE p.partition = ANY($1::integer[])
"""

_RELEASE = """
WITH released AS (
    UPDATE rooms.leases l SET owner = '' FROM unnest($2::integer[], $3::bigint[]) mine (partition, epoch)
    WHERE l.partition = mine.partition AND l.owner = $1 AND l.epoch = mine.epoch
    RETURNING l.partition, l.epoch
)
UPDATE rooms.partitions p SET clean = true FROM released
WHERE p.partition = released.partition AND p.epoch = released.epoch
"""

_HAND_OVER = """
WITH heir AS (
    SELECT owner FROM rooms.writers
    WHERE (name = $4 OR owner = $4) AND owner <> $1 AND expires_at > clock_timestamp()
    ORDER BY expires_at DESC LIMIT 1
), given AS (
    UPDATE rooms.leases l SET owner = heir.owner, heir = '' FROM heir
    WHERE l.partition = $2 AND l.owner = $1 AND l.epoch = $3
    RETURNING l.partition, l.epoch
)
UPDATE rooms.partitions p SET clean = true FROM given WHERE p.partition = given.partition AND p.epoch = given.epoch
"""

_DELETE_DEAD = "DELETE FROM rooms.writers WHERE owner = $1 OR expires_at < clock_timestamp() - interval '1 hour'"


_SET_DRAINING = "UPDATE rooms.writers SET draining = $2 WHERE name = $1 OR owner = $1"
_ASK_HAND_OVER = "UPDATE rooms.leases SET heir = $2 WHERE partition = $1 AND owner <> ''"
_IS_TAKEN = "SELECT epoch > $2 FROM rooms.partitions WHERE partition = $1"
_FORGET_HEIR = "UPDATE rooms.leases SET heir = '' WHERE partition = $1 AND owner = $2"


class PartitionLocked(Exception):
    """Somebody's unfinished statement holds a partition that nobody alive owns."""


class TakenPartition(NamedTuple):
    """A partition as its new owner finds it."""

    partition: int
    epoch: int
    incarnation: int
    head: int
    announced: int
    topic_id: str
    done_offset: int
    clean: bool  # whether the last owner gave it up in order


@dataclass(frozen=True, slots=True)
class Renewed:
    """What an owner learns when it renews.

    Attributes:
        epochs: of the partitions that are leased to it.
        heirs: the writers that some of these are to be handed over to.
        is_draining: whether it is to give everything away.
    """

    epochs: dict[int, int]
    heirs: dict[int, str]
    is_draining: bool


class LivingWriter(NamedTuple):
    """A process that owns partitions of this shard, or would."""

    owner: str
    name: str
    is_draining: bool
    partitions: int


async def register(tx: Transaction, owner: str, name: str, lock_key: int | None) -> None:
    """Begin to be alive on this connection, which the process must keep.

    Args:
        owner: of this process alone (a name and a nonce).
        name: by which partitions are handed over to it.
        lock_key: of this process alone; None where the connection is no session of its own.
    """
    if lock_key is not None:
        # Held already only by a connection that this process used for its leases before: as good a proof.
        await tx.execute("SELECT pg_try_advisory_lock($1)", lock_key)
    await tx.execute(_REGISTER, owner, name, lock_key, LEASE_SECONDS)


async def unregister(tx: Transaction, owner: str, lock_key: int | None) -> None:
    """Stop being alive; the leases must have been released."""
    await tx.execute(_DELETE_DEAD, owner)
    if lock_key is not None:
        await tx.execute("SELECT pg_advisory_unlock($1)", lock_key)


async def renew(tx: Transaction, owner: str) -> Renewed | None:
    """Stay alive; what is leased to `owner` and asked of it, None if its row is gone."""
    rows = await tx.fetch(_RENEW, owner, LEASE_SECONDS)
    if not rows:
        return None
    leased = [row for row in rows if row[0] is not None]
    return Renewed({row[0]: row[1] for row in leased}, {row[0]: row[2] for row in leased if row[2]}, rows[0][3])


async def list_writers(tx: Transaction) -> list[LivingWriter]:
    """Everybody who is alive, with how many partitions they have."""
    return [LivingWriter(*row) for row in await tx.fetch(_LIST_WRITERS)]


async def list_free(tx: Transaction, owner: str, partitions: Sequence[int]) -> dict[int, bool]:
    """Those of the partitions that `owner` may take now; True where it has the lease already (it was handed over)."""
    return {row[0]: row[1] for row in await tx.fetch(_LIST_FREE, owner, list(partitions))}


async def take(tx: Transaction, owner: str, partitions: Sequence[int]) -> list[TakenPartition]:
    """Take those of the partitions that nobody alive has, in one statement; each gets a new epoch.

    A partition that `owner` itself has by its lease is taken anew (after a lost commit, or when it
    was handed over).

    Args:
        tx: a transaction for this alone.

    Raises:
        PartitionLocked: an unfinished statement has kept a row locked for a second (`end_blockers`).
    """
    await tx.execute(f"SET LOCAL lock_timeout = {LOCK_PATIENCE_MS}")
    try:
        rows = await tx.fetch(_TAKE, owner, list(partitions))
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
        raise PartitionLocked(str(error)) from error
    return [TakenPartition(*row) for row in rows]


async def end_blockers(tx: Transaction, partitions: Sequence[int]) -> int:
    """End the backends that hold these partitions in unfinished statements: their clients are gone or stuck."""
    ended: int = await tx.fetchval(_END_BLOCKERS, list(partitions))
    return ended


async def release(tx: Transaction, owner: str, epochs: dict[int, int]) -> None:
    """Give partitions up in order: all that was taken has been written."""
    await tx.execute(_RELEASE, owner, list(epochs), list(epochs.values()))


async def hand_over(tx: Transaction, owner: str, partition: int, epoch: int, name: str) -> bool:
    """Give one partition to the living writer of that name; False if there is none (it is kept)."""
    return await tx.execute(_HAND_OVER, owner, partition, epoch, name) == "UPDATE 1"


async def is_taken(tx: Transaction, partition: int, epoch: int) -> bool:
    """Whether somebody has taken a partition since it had that epoch."""
    return bool(await tx.fetchval(_IS_TAKEN, partition, epoch))


async def set_draining(tx: Transaction, name: str, *, draining: bool = True) -> bool:
    """Ask the writer of that name or owner to give everything away, or to take part again; False if there is none."""
    return await tx.execute(_SET_DRAINING, name, draining) != "UPDATE 0"


async def ask_hand_over(tx: Transaction, partition: int, name: str) -> bool:
    """Ask whoever has a partition to hand it over to the writer of that name; False if nobody has it."""
    return await tx.execute(_ASK_HAND_OVER, partition, name) == "UPDATE 1"


async def forget_heir(tx: Transaction, owner: str, partition: int) -> None:
    """What was asked cannot be done: the partition stays with its owner."""
    await tx.execute(_FORGET_HEIR, partition, owner)
