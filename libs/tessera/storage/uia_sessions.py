"""Sessions of the user-interactive authentication. Spec: C-S API §User-Interactive Authentication API."""

from typing import NamedTuple

from tessera.storage.database import Transaction


class UiaSession(NamedTuple):
    """A session: the operation it was begun for, whose request it is, and the stages done."""

    operation: str
    identity: bytes
    completed: tuple[str, ...]


# The sweep is bounded, so that a flood of sessions does not make one request pay for all.
_ADD = """
WITH swept AS (
    DELETE FROM accounts.uia_sessions WHERE session_id IN (
        SELECT session_id FROM accounts.uia_sessions WHERE expires_ts <= $5 LIMIT 100 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO accounts.uia_sessions (session_id, operation, identity, expires_ts) VALUES ($1, $2, $3, $4)
"""

_FIND = """
SELECT operation, identity, completed FROM accounts.uia_sessions WHERE session_id = $1 AND expires_ts > $2
"""

_COMPLETE = """
UPDATE accounts.uia_sessions
SET completed = CASE WHEN $2 = ANY(completed) THEN completed ELSE completed || $2 END
WHERE session_id = $1 RETURNING completed
"""

_DELETE = "DELETE FROM accounts.uia_sessions WHERE session_id = $1"


async def add_session(
    tx: Transaction, session_id: str, operation: str, identity: bytes, *, expires_ts: int, now_ms: int
) -> None:
    """Begin a session; sweeps some of the expired ones."""
    await tx.execute(_ADD, session_id, operation, identity, expires_ts, now_ms)


async def find_session(tx: Transaction, session_id: str, *, now_ms: int) -> UiaSession | None:
    """A session that has not expired."""
    row = await tx.fetchrow(_FIND, session_id, now_ms)
    return None if row is None else UiaSession(row[0], row[1], tuple(row[2]))


async def complete_stage(tx: Transaction, session_id: str, stage: str) -> tuple[str, ...]:
    """Note a stage as done; answers all that are. Repeatable."""
    completed = await tx.fetchval(_COMPLETE, session_id, stage)
    return tuple(completed or ())


async def delete_session(tx: Transaction, session_id: str) -> None:
    """The session was used up."""
    await tx.execute(_DELETE, session_id)
