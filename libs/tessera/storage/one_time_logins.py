"""Tokens that stand for a user once or for a while: login tokens and OpenID tokens. Only hashes are kept.

Spec: C-S API POST /login/get_token, §OpenID.
"""

from matrixcore.identifiers import UserId
from tessera.storage.access_tokens import hash_token
from tessera.storage.database import Transaction

# The sweeps are bounded, so that one request does not pay for all.
_ADD_LOGIN = """
WITH swept AS (
    DELETE FROM accounts.login_tokens WHERE token_hash IN (
        SELECT token_hash FROM accounts.login_tokens WHERE expires_ts <= $4 LIMIT 100 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO accounts.login_tokens (token_hash, user_id, expires_ts) VALUES ($1, $2, $3)
"""

_TAKE_LOGIN = """
WITH taken AS (DELETE FROM accounts.login_tokens WHERE token_hash = $1 RETURNING user_id, expires_ts)
SELECT t.user_id FROM taken t JOIN accounts.users u USING (user_id) WHERE t.expires_ts > $2 AND NOT u.deactivated
"""

_DELETE_LOGINS = "DELETE FROM accounts.login_tokens WHERE user_id = $1"

_ADD_OPENID = """
WITH swept AS (
    DELETE FROM accounts.openid_tokens WHERE token_hash IN (
        SELECT token_hash FROM accounts.openid_tokens WHERE expires_ts <= $4 LIMIT 100 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO accounts.openid_tokens (token_hash, user_id, expires_ts) VALUES ($1, $2, $3)
"""

_FIND_OPENID = """
SELECT t.user_id FROM accounts.openid_tokens t JOIN accounts.users u USING (user_id)
WHERE t.token_hash = $1 AND t.expires_ts > $2 AND NOT u.deactivated AND NOT u.locked
"""


async def add_login_token(tx: Transaction, user_id: UserId, token: str, *, expires_ts: int, now_ms: int) -> None:
    """Keep a token that logs the user in once; sweeps some of the expired ones."""
    await tx.execute(_ADD_LOGIN, hash_token(token), user_id, expires_ts, now_ms)


async def take_login_token(tx: Transaction, token: str, now_ms: int) -> UserId | None:
    """Use a login token up: whose it was, None if it is unknown, was used or has expired."""
    user_id = await tx.fetchval(_TAKE_LOGIN, hash_token(token), now_ms)
    return None if user_id is None else UserId(user_id)


async def delete_login_tokens(tx: Transaction, user_id: UserId) -> None:
    """Nobody shall log in with a token that was made before."""
    await tx.execute(_DELETE_LOGINS, user_id)


async def add_openid_token(tx: Transaction, user_id: UserId, token: str, *, expires_ts: int, now_ms: int) -> None:
    """Keep a token that tells others who the user is; sweeps some of the expired ones."""
    await tx.execute(_ADD_OPENID, hash_token(token), user_id, expires_ts, now_ms)


async def find_openid_user(tx: Transaction, token: str, now_ms: int) -> UserId | None:
    """Whom an OpenID token stands for, for GET /_matrix/federation/v1/openid/userinfo; None if for nobody now."""
    user_id = await tx.fetchval(_FIND_OPENID, hash_token(token), now_ms)
    return None if user_id is None else UserId(user_id)
