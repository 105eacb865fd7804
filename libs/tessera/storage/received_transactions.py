"""Transactions of other servers: the reply that each got, and the EDUs in them that must not be lost.

The row of a transaction is written after its PDUs lie in the inboxes of their shards, with its EDUs in one commit: a
transaction without a row is simply taken in once more, which PDUs do not mind.

Spec: S-S API §Transactions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import ServerName
from tessera.storage.database import Transaction

# Peers repeat a transaction for so long at most; each new one sweeps a few of those that are older.
LIFETIME_MS = 3 * 24 * 3600 * 1000

_FIND = "SELECT reply FROM accounts.received_transactions WHERE origin = $1 AND txn_id = $2"
_ADD = """
WITH swept AS (
    DELETE FROM accounts.received_transactions WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM accounts.received_transactions
        WHERE received_ms < $5 ORDER BY received_ms LIMIT 4 FOR UPDATE SKIP LOCKED
    ))
), added AS (
    INSERT INTO accounts.received_transactions (origin, txn_id, received_ms, reply) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING RETURNING true
)
INSERT INTO accounts.received_edus (origin, edu, received_ms)
SELECT $1, edu, $3 FROM unnest($6::bytea[]) WITH ORDINALITY AS given (edu, number)
WHERE EXISTS (SELECT FROM added) ORDER BY number
"""
_COUNT_EDUS = "SELECT count(*) FROM (SELECT FROM accounts.received_edus WHERE origin = $1 LIMIT $2) AS lying"
_LIST_EDUS = "SELECT edu_id, origin, edu FROM accounts.received_edus ORDER BY edu_id LIMIT $1"
_LOCK_EDUS = "SELECT edu_id FROM accounts.received_edus WHERE edu_id = ANY($1::bigint[]) FOR UPDATE SKIP LOCKED"
_DELETE_EDUS = "DELETE FROM accounts.received_edus WHERE edu_id = ANY($1::bigint[])"


class ReceivedEdu(NamedTuple):
    """An EDU that waits to take effect."""

    edu_id: int
    origin: ServerName
    edu: dict[str, Any]  # edu_type, content


async def find_reply(tx: Transaction, origin: ServerName, txn_id: str) -> bytes | None:
    """What the transaction was answered."""
    reply: bytes | None = await tx.fetchval(_FIND, origin, txn_id)
    return reply


async def add(
    tx: Transaction, origin: ServerName, txn_id: str, reply: bytes, edus: Sequence[Mapping[str, Any]], now_ms: int
) -> None:
    """Write a transaction's reply, with those of its EDUs that must take effect once; one that is there stays.

    One statement: it needs no transaction around it.
    """
    stored = [orjson.dumps(edu) for edu in edus]
    await tx.execute(_ADD, origin, txn_id, now_ms, reply, now_ms - LIFETIME_MS, stored)


async def count_edus(tx: Transaction, origin: ServerName, limit: int) -> int:
    """How many EDUs of a server wait, counted up to `limit`."""
    count: int = await tx.fetchval(_COUNT_EDUS, origin, limit)
    return count


async def list_edus(tx: Transaction, limit: int) -> list[ReceivedEdu]:
    """The oldest EDUs."""
    return [ReceivedEdu(row[0], row[1], orjson.loads(row[2])) for row in await tx.fetch(_LIST_EDUS, limit)]


async def lock_edus(tx: Transaction, edu_ids: Sequence[int]) -> list[int]:
    """Those of the EDUs that are there still and that nobody else takes now.

    Delete them in this transaction, with what they did.
    """
    return [row[0] for row in await tx.fetch(_LOCK_EDUS, list(edu_ids))]


async def delete_edus(tx: Transaction, edu_ids: Sequence[int]) -> None:
    """These have taken effect."""
    await tx.execute(_DELETE_EDUS, list(edu_ids))
