"""Users who left and asked that who had not seen their messages shall not. Spec: C-S API §Account deactivation."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


class Erasure(NamedTuple):
    """An erased user; positions grow in the order of commits."""

    position: int
    user_id: UserId


_LIST = "SELECT user_id FROM accounts.users WHERE user_id = ANY($1::text[]) AND erased"

# Erasures are rare, so that they may wait for each other: a reader who has seen a position has seen all below it.
_LOCK = "LOCK TABLE accounts.erasures IN SHARE ROW EXCLUSIVE MODE"

_ADD = "INSERT INTO accounts.erasures (user_id) VALUES ($1) ON CONFLICT DO NOTHING"

_LIST_AFTER = "SELECT position, user_id FROM accounts.erasures WHERE position > $1 ORDER BY position LIMIT $2"


async def list_erased(tx: Transaction, user_ids: Sequence[UserId]) -> list[UserId]:
    """Those of the users who are erased."""
    return [UserId(row[0]) for row in await tx.fetch(_LIST, list(user_ids))]


async def add_erasure(tx: Transaction, user_id: UserId) -> None:
    """Number a user's erasure; it waits for other erasures to be committed."""
    await tx.execute(_LOCK)
    await tx.execute(_ADD, user_id)


async def list_erasures(tx: Transaction, after: int, limit: int = 10_000) -> list[Erasure]:
    """Erasures above a position, in order."""
    return [Erasure(*row) for row in await tx.fetch(_LIST_AFTER, after, limit)]
