"""Tokens that let people register. Spec: C-S API §Token-authenticated registration.

A use is taken by an interactive session that names the token and counts as pending until the session has made an
account or has ended; so nothing has to be counted back when somebody gives up.
"""

from typing import NamedTuple

from tessera.storage.database import Transaction


class RegistrationToken(NamedTuple):
    """A token; times in milliseconds since the epoch, None for no bound."""

    token: str
    uses_allowed: int | None
    pending: int
    completed: int
    expires_ts: int | None

    def is_valid(self, now_ms: int) -> bool:
        """Whether somebody can still register with it."""
        return (self.expires_ts is None or self.expires_ts > now_ms) and (
            self.uses_allowed is None or self.pending + self.completed < self.uses_allowed
        )


_COLUMNS = """
SELECT t.token, t.uses_allowed, (
    SELECT count(*) FROM accounts.uia_sessions s
    WHERE s.registration_token = t.token AND s.expires_ts > $1 AND s.session_id <> $2
)::integer, t.completed, t.expires_ts
FROM accounts.registration_tokens t
"""

_FIND = _COLUMNS + "WHERE t.token = $3"

_LIST = _COLUMNS + "ORDER BY t.token"

_LOCK = "SELECT 1 FROM accounts.registration_tokens WHERE token = $1 FOR UPDATE"

_ADD = """
INSERT INTO accounts.registration_tokens (token, uses_allowed, expires_ts) VALUES ($1, $2, $3)
ON CONFLICT (token) DO NOTHING RETURNING 1
"""

_SET = "UPDATE accounts.registration_tokens SET uses_allowed = $2, expires_ts = $3 WHERE token = $1"

_DELETE = "DELETE FROM accounts.registration_tokens WHERE token = $1 RETURNING 1"

_CLAIM = "UPDATE accounts.uia_sessions SET registration_token = $2 WHERE session_id = $1"

_USE = "UPDATE accounts.registration_tokens SET completed = completed + 1 WHERE token = $1"


async def find_token(tx: Transaction, token: str, *, now_ms: int, session_id: str = "") -> RegistrationToken | None:
    """A token; the session of that ID does not count among the pending ones."""
    row = await tx.fetchrow(_FIND, now_ms, session_id, token)
    return None if row is None else RegistrationToken(*row)


async def list_tokens(tx: Transaction, *, now_ms: int) -> list[RegistrationToken]:
    """All tokens, for administrators."""
    return [RegistrationToken(*row) for row in await tx.fetch(_LIST, now_ms, "")]


async def add_token(tx: Transaction, token: str, *, uses_allowed: int | None, expires_ts: int | None) -> bool:
    """Make a token; False if there is one of that name."""
    return await tx.fetchval(_ADD, token, uses_allowed, expires_ts) is not None


async def lock_token(tx: Transaction, token: str) -> None:
    """Hold off other uses and changes of a token until the transaction ends."""
    await tx.execute(_LOCK, token)


async def set_token(tx: Transaction, token: str, *, uses_allowed: int | None, expires_ts: int | None) -> None:
    """Change the bounds of a token."""
    await tx.execute(_SET, token, uses_allowed, expires_ts)


async def delete_token(tx: Transaction, token: str) -> bool:
    """Delete a token; False if there is none."""
    return await tx.fetchval(_DELETE, token) is not None


async def claim_token(tx: Transaction, session_id: str, token: str, *, now_ms: int) -> bool:
    """Have an interactive session take one use of a token; False if there is none left."""
    await lock_token(tx, token)
    found = await find_token(tx, token, now_ms=now_ms, session_id=session_id)
    if found is None or not found.is_valid(now_ms):
        return False
    await tx.execute(_CLAIM, session_id, token)
    return True


async def use_token(tx: Transaction, token: str) -> None:
    """An account was made with it, in the transaction that deletes the session."""
    await tx.execute(_USE, token)
