"""Sign-ins by a provider of identities that are under way. A row is good for one browser and one time.

The state that goes to the provider and the secret that the browser keeps are in the table as hashes only.
"""

from typing import NamedTuple

from tessera.storage.access_tokens import hash_token
from tessera.storage.database import Transaction


class SsoAttempt(NamedTuple):
    """What is remembered while somebody is at the provider.

    Either `redirect_url` says where a login leads to, or `uia_session_id` which interactive authentication it is for.

    Attributes:
        is_proven: the provider has said who it is; the person is still to confirm what it is for.
    """

    auth_provider: str
    nonce: str
    code_verifier: str
    redirect_url: str | None
    uia_session_id: str | None
    is_proven: bool = False


# The sweep is bounded, so that one request does not pay for all.
_ADD = """
WITH swept AS (
    DELETE FROM accounts.sso_attempts WHERE state_hash = ANY(ARRAY(
        SELECT state_hash FROM accounts.sso_attempts WHERE expires_ts <= $10
        ORDER BY expires_ts LIMIT 100 FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO accounts.sso_attempts (
    state_hash, browser_hash, auth_provider, nonce, code_verifier, redirect_url, uia_session_id, is_proven, expires_ts
)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9
WHERE (SELECT count(*) FROM accounts.sso_attempts WHERE expires_ts > $10) < $11
RETURNING 1
"""

_TAKE = """
WITH taken AS (
    DELETE FROM accounts.sso_attempts WHERE state_hash = $1 AND browser_hash = $2 AND is_proven = $3
    RETURNING auth_provider, nonce, code_verifier, redirect_url, uia_session_id, is_proven, expires_ts
)
SELECT auth_provider, nonce, code_verifier, redirect_url, uia_session_id, is_proven FROM taken WHERE expires_ts > $4
"""


async def add_attempt(
    tx: Transaction, state: str, browser: str, attempt: SsoAttempt, *, expires_ts: int, now_ms: int, most: int
) -> bool:
    """Remember an attempt; False if there are `most` already. Sweeps some of the expired ones."""
    values = (hash_token(state), hash_token(browser), *attempt, expires_ts, now_ms, most)
    return await tx.fetchval(_ADD, *values) is not None


async def take_attempt(tx: Transaction, state: str, browser: str, *, is_proven: bool, now_ms: int) -> SsoAttempt | None:
    """Use an attempt up; None if it is unknown, was used, has expired or was begun by another browser.

    Another browser's request leaves it as it is.
    """
    row = await tx.fetchrow(_TAKE, hash_token(state), hash_token(browser), is_proven, now_ms)
    return None if row is None else SsoAttempt(*row)
