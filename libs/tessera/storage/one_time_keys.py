"""One-time and fallback keys, each given out at most once (fallback keys: again and again).

Spec: C-S API §One-time and fallback keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

# Uploads of one device are serialised by device_keys.lock_device, so what CLASHES sees cannot change before ADD.
CLASHES = """
SELECT stored.algorithm || ':' || stored.key_id, stored.content, given.content
FROM unnest($3::text[], $4::text[], $5::bytea[]) AS given (algorithm, key_id, content)
JOIN accounts.one_time_keys stored
    ON stored.user_id = $1 AND stored.device_id = $2
    AND stored.algorithm = given.algorithm AND stored.key_id = given.key_id
WHERE stored.content <> given.content
"""

ADD = """
WITH upload AS MATERIALIZED (SELECT nextval('accounts.one_time_keys_batch') AS batch)
INSERT INTO accounts.one_time_keys (user_id, device_id, algorithm, key_id, batch, content)
SELECT $1, $2, given.algorithm, given.key_id, upload.batch, given.content
FROM upload, unnest($3::text[], $4::text[], $5::bytea[]) AS given (algorithm, key_id, content)
ON CONFLICT DO NOTHING
"""

COUNT = """
SELECT algorithm, count(*) FROM accounts.one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm
"""

# A re-upload of a used key does not make it fresh again.
SET_FALLBACK = """
INSERT INTO accounts.fallback_keys (user_id, device_id, algorithm, key_id, content)
SELECT $1, $2, given.algorithm, given.key_id, given.content
FROM unnest($3::text[], $4::text[], $5::bytea[]) AS given (algorithm, key_id, content)
ORDER BY given.algorithm
ON CONFLICT (user_id, device_id, algorithm) DO UPDATE
SET key_id = excluded.key_id, content = excluded.content, used = false
WHERE fallback_keys.key_id <> excluded.key_id OR fallback_keys.content <> excluded.content
"""

UNUSED_FALLBACK = """
SELECT algorithm FROM accounts.fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used ORDER BY algorithm
"""

# MATERIALIZED: the choice is made once; inlined into the DELETE it could run again and take more than one key.
CLAIM = """
WITH chosen AS MATERIALIZED (
    SELECT key.user_id, key.device_id, key.algorithm, key.key_id
    FROM (
        SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[]) AS asked (user_id, device_id, algorithm)
    ) asked
    CROSS JOIN LATERAL (
        SELECT k.user_id, k.device_id, k.algorithm, k.key_id FROM accounts.one_time_keys k
        WHERE k.user_id = asked.user_id AND k.device_id = asked.device_id AND k.algorithm = asked.algorithm
        ORDER BY k.batch LIMIT 1 FOR UPDATE SKIP LOCKED
    ) key
)
DELETE FROM accounts.one_time_keys taken USING chosen
WHERE taken.user_id = chosen.user_id AND taken.device_id = chosen.device_id
  AND taken.algorithm = chosen.algorithm AND taken.key_id = chosen.key_id
RETURNING taken.user_id, taken.device_id, taken.algorithm, taken.key_id, taken.content, true
"""

# Only fresh keys are locked and changed, in one order for all claimers.
CLAIM_FALLBACK = """
WITH asked AS (
    SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[]) AS asked (user_id, device_id, algorithm)
), fresh AS MATERIALIZED (
    SELECT f.user_id, f.device_id, f.algorithm
    FROM accounts.fallback_keys f JOIN asked USING (user_id, device_id, algorithm)
    WHERE NOT f.used ORDER BY f.user_id, f.device_id, f.algorithm FOR UPDATE OF f
), marked AS (
    UPDATE accounts.fallback_keys f SET used = true FROM fresh
    WHERE f.user_id = fresh.user_id AND f.device_id = fresh.device_id AND f.algorithm = fresh.algorithm
)
SELECT f.user_id, f.device_id, f.algorithm, f.key_id, f.content, NOT f.used
FROM accounts.fallback_keys f JOIN asked USING (user_id, device_id, algorithm)
"""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key to store; `content` is canonical JSON (a string or a signed object): equal keys are equal bytes."""

    algorithm: str
    key_id: str
    content: bytes


@dataclass(frozen=True, slots=True)
class ClaimedKey:
    """A key that was given out; `changes_sync` says that its device's counts or unused fallback types changed."""

    user_id: UserId
    device_id: str
    algorithm: str
    key_id: str
    content: bytes
    changes_sync: bool


@dataclass(frozen=True, slots=True)
class KeyClash:
    """A name (`algorithm:key_id`) for which two different keys were uploaded."""

    name: str
    stored: bytes
    given: bytes


ClaimTarget = tuple[UserId, str, str]  # (user, device, algorithm)


async def list_clashes(tx: Transaction, user_id: UserId, device_id: str, keys: Sequence[PublicKey]) -> list[KeyClash]:
    """The given keys under whose name another key is stored."""
    rows = await tx.fetch(CLASHES, user_id, device_id, *_columns(keys))
    return [KeyClash(*row) for row in rows]


async def add_keys(tx: Transaction, user_id: UserId, device_id: str, keys: Sequence[PublicKey]) -> None:
    """Store an upload's one-time keys; those that are there already stay in their place."""
    await tx.execute(ADD, user_id, device_id, *_columns(keys))


async def count_keys(tx: Transaction, user_id: UserId, device_id: str) -> dict[str, int]:
    """How many unclaimed one-time keys of each algorithm there are; algorithms without any are absent."""
    rows = await tx.fetch(COUNT, user_id, device_id)
    return {row[0]: row[1] for row in rows}


async def set_fallback_keys(tx: Transaction, user_id: UserId, device_id: str, keys: Sequence[PublicKey]) -> None:
    """Replace the device's fallback keys of the given algorithms (one key for each algorithm)."""
    await tx.execute(SET_FALLBACK, user_id, device_id, *_columns(keys))


async def list_unused_fallback_types(tx: Transaction, user_id: UserId, device_id: str) -> list[str]:
    """Algorithms of which the device has a fallback key that nobody has claimed yet."""
    rows = await tx.fetch(UNUSED_FALLBACK, user_id, device_id)
    return [row[0] for row in rows]


async def claim_keys(tx: Transaction, targets: Sequence[ClaimTarget]) -> list[ClaimedKey]:
    """Take one key for each target: the oldest one-time key, else the fallback key; at most one for a target.

    A key that a concurrent claim is taking is passed over. Two statements at most, whatever the number of targets.
    """
    rows = await tx.fetch(CLAIM, *_target_columns(targets))
    claimed = [ClaimedKey(*row) for row in rows]
    served = {(key.user_id, key.device_id, key.algorithm) for key in claimed}
    missing = [target for target in targets if target not in served]
    if missing:
        rows = await tx.fetch(CLAIM_FALLBACK, *_target_columns(missing))
        claimed += [ClaimedKey(*row) for row in rows]
    return claimed


def _columns(keys: Sequence[PublicKey]) -> tuple[list[str], list[str], list[bytes]]:
    return [key.algorithm for key in keys], [key.key_id for key in keys], [key.content for key in keys]


def _target_columns(targets: Sequence[ClaimTarget]) -> tuple[list[str], list[str], list[str]]:
    return [target[0] for target in targets], [target[1] for target in targets], [target[2] for target in targets]
