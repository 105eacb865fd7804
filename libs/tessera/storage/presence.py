"""The presence that users set, one row for each. Spec: C-S API §Presence."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


class Presence(NamedTuple):
    """What a user set last; last_active_ts in milliseconds since the epoch."""

    user_id: UserId
    presence: str
    status_msg: str | None
    last_active_ts: int


_SET = """
INSERT INTO accounts.presence AS p (user_id, presence, status_msg, last_active_ts) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id) DO UPDATE SET
    presence = EXCLUDED.presence, status_msg = EXCLUDED.status_msg,
    last_active_ts = greatest(p.last_active_ts, EXCLUDED.last_active_ts)
"""

_SET_STATE = """
INSERT INTO accounts.presence AS p (user_id, presence, last_active_ts) VALUES ($1, $2, $3)
ON CONFLICT (user_id) DO UPDATE SET
    presence = EXCLUDED.presence, last_active_ts = greatest(p.last_active_ts, EXCLUDED.last_active_ts)
RETURNING status_msg
"""

# What other servers tell of their users has told_at.
_LIST_ABOUT = """
SELECT user_id, presence, status_msg, last_active_ts FROM accounts.presence
WHERE user_id > $1 AND told_at IS NULL AND presence <> 'offline' AND last_active_ts > $2
ORDER BY user_id LIMIT $3
"""

_LIST = "SELECT user_id, presence, status_msg, last_active_ts FROM accounts.presence WHERE user_id = ANY($1::text[])"


_SET_TOLD = """
INSERT INTO accounts.presence AS p (user_id, presence, status_msg, last_active_ts, told_at)
SELECT *, now() FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) ORDER BY 1
ON CONFLICT (user_id) DO UPDATE SET
    presence = EXCLUDED.presence, status_msg = EXCLUDED.status_msg, told_at = EXCLUDED.told_at,
    last_active_ts = greatest(p.last_active_ts, EXCLUDED.last_active_ts)
"""


async def set_told(tx: Transaction, states: Sequence[Presence]) -> None:
    """Store what other servers tell of several of their users, each of them once."""
    if states:
        await tx.execute(_SET_TOLD, *(list(column) for column in zip(*states, strict=True)))


async def set_presence(tx: Transaction, state: Presence) -> None:
    """Store what the user set."""
    await tx.execute(_SET, *state)


async def set_state(tx: Transaction, user_id: UserId, state: str, last_active_ts: int) -> str | None:
    """Store what follows from the user's syncing; the status message, which stays as the user set it."""
    status: str | None = await tx.fetchval(_SET_STATE, user_id, state, last_active_ts)
    return status


async def list_presence(tx: Transaction, user_ids: Sequence[UserId]) -> list[Presence]:
    """What is known of these users; those who never set anything are absent."""
    return [Presence(*row) for row in await tx.fetch(_LIST, list(user_ids))]


async def list_about(tx: Transaction, after: UserId, active_after_ms: int, limit: int) -> list[Presence]:
    """Users of this server who are not offline and were active after a time, in the order of their IDs."""
    return [Presence(*row) for row in await tx.fetch(_LIST_ABOUT, after, active_after_ms, limit)]


async def find_presence(tx: Transaction, user_id: UserId) -> Presence | None:
    """What is known of one user."""
    found = await list_presence(tx, [user_id])
    return found[0] if found else None
