"""Sessions: access and refresh tokens, of which only SHA-256 hashes are stored.

Spec: C-S API §Using access tokens, §Relationship between access tokens and devices, §Refreshing
access tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


class FoundToken(NamedTuple):
    """Whose access token it is.

    `supersedes` is the hash of the refresh token to revoke now that this token is used, see
    `revoke_superseded`. The times are milliseconds since the epoch, None for never.
    """

    user_id: UserId
    device_id: str
    is_guest: bool
    is_admin: bool
    expires_ts: int | None
    supersedes: bytes | None
    locked: bool
    suspended: bool


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Hashes and ends of the tokens to store for a device; refresh_* is None without a refresh token."""

    access_hash: bytes
    expires_ts: int | None
    refresh_hash: bytes | None = None
    refresh_expires_ts: int | None = None
    session_expires_ts: int | None = None


class FoundRefresh(NamedTuple):
    """A refresh token and whose it is."""

    user_id: UserId
    device_id: str
    expires_ts: int | None
    session_expires_ts: int | None
    supersedes: bytes | None
    locked: bool


_FIND = """
SELECT t.token_hash, t.user_id, t.device_id, u.is_guest, u.is_admin, t.expires_ts, t.supersedes, u.locked, u.suspended
FROM accounts.access_tokens t JOIN accounts.users u USING (user_id)
WHERE t.token_hash = ANY($1) AND NOT u.deactivated
"""

# A known device keeps its name, keys and inbox and loses its tokens.
_ADD_SESSION = """
WITH device AS (
    INSERT INTO accounts.devices AS d (user_id, device_id, display_name, created_ts, last_seen_ts, last_seen_ip)
    VALUES ($1, $2, $3, $4, CASE WHEN $10::text IS NOT NULL THEN $4::bigint END, $10)
    ON CONFLICT (user_id, device_id) DO UPDATE SET
        last_seen_ts = coalesce(EXCLUDED.last_seen_ts, d.last_seen_ts),
        last_seen_ip = coalesce(EXCLUDED.last_seen_ip, d.last_seen_ip)
    RETURNING (xmax = 0) AS created
), ended AS (
    DELETE FROM accounts.access_tokens WHERE user_id = $1 AND device_id = $2
), ended_refresh AS (
    DELETE FROM accounts.refresh_tokens WHERE user_id = $1 AND device_id = $2
), ended_oauth AS (
    DELETE FROM accounts.oauth_sessions WHERE user_id = $1 AND device_id = $2
), refresh AS (
    INSERT INTO accounts.refresh_tokens (token_hash, user_id, device_id, created_ts, expires_ts, session_expires_ts)
    SELECT $7, $1, $2, $4, $8, $9 FROM device WHERE $7::bytea IS NOT NULL
), token AS (
    INSERT INTO accounts.access_tokens (token_hash, user_id, device_id, created_ts, expires_ts, refresh_hash)
    SELECT $5, $1, $2, $4, $6, $7 FROM device
)
SELECT created FROM device
"""

_FIND_REFRESH = """
SELECT r.user_id, r.device_id, r.expires_ts, r.session_expires_ts, r.supersedes, u.locked
FROM accounts.refresh_tokens r JOIN accounts.users u USING (user_id)
WHERE r.token_hash = $1 AND NOT u.deactivated
FOR UPDATE OF r
"""

# Tokens that nobody used before they ended are swept here: replies that were lost leave them.
_ADD_REFRESHED = """
WITH swept AS (
    DELETE FROM accounts.access_tokens
    WHERE user_id = $1 AND device_id = $2 AND expires_ts < $3 AND supersedes IS NOT NULL
), refresh AS (
    INSERT INTO accounts.refresh_tokens
        (token_hash, user_id, device_id, created_ts, expires_ts, session_expires_ts, supersedes)
    VALUES ($6, $1, $2, $3, $7, $8, $9)
)
INSERT INTO accounts.access_tokens (token_hash, user_id, device_id, created_ts, expires_ts, refresh_hash, supersedes)
VALUES ($4, $1, $2, $3, $5, $6, $9)
"""

_REVOKE_SUPERSEDED = """
WITH refresh AS (DELETE FROM accounts.refresh_tokens WHERE token_hash = $1),
access AS (DELETE FROM accounts.access_tokens WHERE user_id = $2 AND device_id = $3 AND refresh_hash = $1),
used AS (
    UPDATE accounts.access_tokens SET supersedes = NULL WHERE user_id = $2 AND device_id = $3 AND supersedes = $1
)
UPDATE accounts.refresh_tokens SET supersedes = NULL WHERE user_id = $2 AND device_id = $3 AND supersedes = $1
"""


def hash_token(token: str) -> bytes:
    """What is stored of a token. Tokens have 256 random bits, so that a plain hash is enough."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


async def find_tokens(tx: Transaction, tokens: Iterable[str]) -> dict[str, FoundToken]:
    """Whose tokens they are; expired ones are found too, unknown and revoked ones are left out."""
    by_hash = {hash_token(token): token for token in tokens}
    rows = await tx.fetch(_FIND, list(by_hash))
    return {by_hash[row[0]]: FoundToken(*row[1:]) for row in rows}


async def add_session(
    tx: Transaction,
    user_id: UserId,
    device_id: str,
    display_name: str | None,
    tokens: NewTokens,
    *,
    now_ms: int,
    address: str | None = None,
) -> bool:
    """Log a device in: it is made unless it is there; the tokens that it had before are gone.

    Args:
        address: where it was seen now; None if somebody else logs it in.

    Returns:
        Whether the device is new. Otherwise a session ended: the caller tells the user's log.
    """
    created: bool = await tx.fetchval(
        _ADD_SESSION,
        user_id,
        device_id,
        display_name,
        now_ms,
        tokens.access_hash,
        tokens.expires_ts,
        tokens.refresh_hash,
        tokens.refresh_expires_ts,
        tokens.session_expires_ts,
        address,
    )
    return created


async def find_refresh_token(tx: Transaction, token: str) -> FoundRefresh | None:
    """Whose refresh token it is, locked until the transaction ends."""
    row = await tx.fetchrow(_FIND_REFRESH, hash_token(token))
    return None if row is None else FoundRefresh(*row)


async def add_refreshed(
    tx: Transaction, user_id: UserId, device_id: str, tokens: NewTokens, *, supersedes: bytes, now_ms: int
) -> None:
    """Store the tokens that `supersedes` was exchanged for; it stays valid until one of them is used."""
    await tx.execute(
        _ADD_REFRESHED,
        user_id,
        device_id,
        now_ms,
        tokens.access_hash,
        tokens.expires_ts,
        tokens.refresh_hash,
        tokens.refresh_expires_ts,
        tokens.session_expires_ts,
        supersedes,
    )


async def revoke_superseded(tx: Transaction, user_id: UserId, device_id: str, refresh_hash: bytes) -> None:
    """A token made from this refresh token was used: revoke it and the access token it came with. Repeatable."""
    await tx.execute(_REVOKE_SUPERSEDED, refresh_hash, user_id, device_id)
