"""Sessions of the user-interactive authentication. Spec: C-S API §User-Interactive Authentication API."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


class UiaSession(NamedTuple):
    """A session: the operation it was begun for, whose request it is, and the stages done.

    `facts` is what stages found out, by the stage; `registration_token` the token that it takes a use of; `user_id`
    who is to prove it, None where nobody is yet.
    """

    operation: str
    identity: bytes
    completed: tuple[str, ...]
    facts: Mapping[str, Any]
    registration_token: str | None
    user_id: UserId | None = None


# The sweep is bounded, so that a flood of sessions does not make one request pay for all.
_ADD = """
WITH swept AS (
    DELETE FROM accounts.uia_sessions WHERE session_id IN (
        SELECT session_id FROM accounts.uia_sessions WHERE expires_ts <= $5 LIMIT 100 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO accounts.uia_sessions (session_id, operation, identity, expires_ts, user_id) VALUES ($1, $2, $3, $4, $6)
"""

_FIND = """
SELECT operation, identity, completed, facts::text, registration_token, user_id
FROM accounts.uia_sessions WHERE session_id = $1 AND expires_ts > $2
"""

_FIND_NEWEST = """
SELECT session_id FROM accounts.uia_sessions
WHERE user_id = $1 AND operation = $2 AND identity = $3 AND expires_ts > $4
ORDER BY expires_ts DESC, session_id LIMIT 1
"""

_COMPLETE = """
UPDATE accounts.uia_sessions
SET completed = CASE WHEN $2 = ANY(completed) THEN completed ELSE completed || $2 END,
    facts = facts || $3::text::jsonb
WHERE session_id = $1 RETURNING completed
"""

_TAKE = """
DELETE FROM accounts.uia_sessions WHERE session_id = $1
RETURNING operation, identity, completed, facts::text, registration_token, user_id
"""


async def add_session(
    tx: Transaction,
    session_id: str,
    operation: str,
    identity: bytes,
    *,
    user_id: UserId | None = None,
    expires_ts: int,
    now_ms: int,
) -> None:
    """Begin a session; sweeps some of the expired ones."""
    await tx.execute(_ADD, session_id, operation, identity, expires_ts, now_ms, user_id)


async def find_session(tx: Transaction, session_id: str, *, now_ms: int) -> UiaSession | None:
    """A session that has not expired."""
    return _session(await tx.fetchrow(_FIND, session_id, now_ms))


async def find_newest(tx: Transaction, user_id: UserId, operation: str, identity: bytes, *, now_ms: int) -> str | None:
    """The session that a user began last for an operation on an identity."""
    session_id: str | None = await tx.fetchval(_FIND_NEWEST, user_id, operation, identity, now_ms)
    return session_id


async def complete_stage(tx: Transaction, session_id: str, stage: str, fact: object = None) -> tuple[str, ...]:
    """Note a stage as done, and what it found out unless that is None; answers all that are done. Repeatable."""
    facts = {} if fact is None else {stage: fact}
    completed = await tx.fetchval(_COMPLETE, session_id, stage, orjson.dumps(facts).decode())
    return tuple(completed or ())


async def take_session(tx: Transaction, session_id: str) -> UiaSession | None:
    """Use a session up; None if somebody else did."""
    return _session(await tx.fetchrow(_TAKE, session_id))


def _session(row: Any) -> UiaSession | None:
    return None if row is None else UiaSession(row[0], row[1], tuple(row[2]), orjson.loads(row[3]), row[4], row[5])
