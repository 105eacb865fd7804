"""What people were asked about clients of the OAuth 2.0 API, and what they granted them.

Of secrets there are hashes only. Rows that have ended are swept by those who add, a few at a time.

Spec: C-S API §Grant types; RFC 6749 section 4.1, RFC 8628.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import UserId
from tessera.storage.access_tokens import hash_token
from tessera.storage.database import Transaction


class Task(NamedTuple):
    """What a browser has open. `user_id`: who has signed in there for it."""

    kind: str
    details: dict[str, Any]
    user_id: UserId | None


class Code(NamedTuple):
    """An authorisation code. `was_used`: before this time."""

    client_id: str
    user_id: UserId
    device_id: str
    scope: str
    redirect_uri: str
    code_challenge: str
    was_used: bool = False


class DeviceGrant(NamedTuple):
    """What a device without a browser asked for. `user_id`: who granted it."""

    client_id: str
    device_id: str
    scope: str
    user_id: UserId | None = None
    is_denied: bool = False
    polled_ts: int = 0
    has_ended: bool = False


_ADD_TASK = """
WITH swept AS (
    DELETE FROM accounts.oauth_tasks WHERE task_hash = ANY(ARRAY(
        SELECT task_hash FROM accounts.oauth_tasks WHERE expires_ts <= $6
        ORDER BY expires_ts LIMIT 100 FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO accounts.oauth_tasks (task_hash, browser_hash, kind, details, expires_ts)
SELECT $1, $2, $3, $4, $5
WHERE (SELECT count(*) FROM (SELECT FROM accounts.oauth_tasks WHERE expires_ts > $6 LIMIT $7) counted) < $7
RETURNING 1
"""

_FORGET_OLDEST = """
DELETE FROM accounts.oauth_tasks WHERE task_hash = ANY(ARRAY(
    SELECT task_hash FROM accounts.oauth_tasks
    WHERE user_id IS NULL ORDER BY expires_ts LIMIT 100 FOR UPDATE SKIP LOCKED
))
"""

_FORGET_USER = """
WITH tasks AS (DELETE FROM accounts.oauth_tasks WHERE user_id = $1),
codes AS (DELETE FROM accounts.oauth_codes WHERE user_id = $1)
DELETE FROM accounts.oauth_device_grants WHERE user_id = $1
"""

_FIND_TASK = """
SELECT kind, details, user_id FROM accounts.oauth_tasks WHERE task_hash = $1 AND browser_hash = $2 AND expires_ts > $3
"""

_TAKE_TASK = """
WITH taken AS (
    DELETE FROM accounts.oauth_tasks WHERE task_hash = $1 AND browser_hash = $2
    RETURNING kind, details, user_id, expires_ts
)
SELECT kind, details, user_id FROM taken WHERE expires_ts > $3
"""

_SIGN_IN = """
UPDATE accounts.oauth_tasks SET task_hash = $4, user_id = $5
WHERE task_hash = $1 AND browser_hash = $2 AND expires_ts > $3 AND user_id IS NULL
RETURNING kind, details, user_id
"""

_ADD_CODE = """
WITH swept AS (
    DELETE FROM accounts.oauth_codes WHERE code_hash = ANY(ARRAY(
        SELECT code_hash FROM accounts.oauth_codes WHERE expires_ts <= $9
        ORDER BY expires_ts LIMIT 100 FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO accounts.oauth_codes
    (code_hash, client_id, user_id, device_id, scope, redirect_uri, code_challenge, expires_ts)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""

_USE_CODE = """
WITH found AS (SELECT * FROM accounts.oauth_codes WHERE code_hash = $1 AND expires_ts > $2 FOR UPDATE),
used AS (UPDATE accounts.oauth_codes SET is_used = true WHERE code_hash = (SELECT code_hash FROM found))
SELECT client_id, user_id, device_id, scope, redirect_uri, code_challenge, is_used FROM found
"""

_ADD_GRANT = """
WITH swept AS (
    DELETE FROM accounts.oauth_device_grants WHERE code_hash = ANY(ARRAY(
        SELECT code_hash FROM accounts.oauth_device_grants WHERE expires_ts <= $7
        ORDER BY expires_ts LIMIT 100 FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO accounts.oauth_device_grants (code_hash, user_code, client_id, device_id, scope, expires_ts)
SELECT $1, $2, $3, $4, $5, $6
WHERE (SELECT count(*) FROM (SELECT FROM accounts.oauth_device_grants WHERE expires_ts > $7 LIMIT $8) counted) < $8
ON CONFLICT DO NOTHING
RETURNING 1
"""

_FIND_BY_USER_CODE = """
SELECT client_id, device_id, scope FROM accounts.oauth_device_grants
WHERE user_code = $1 AND expires_ts > $2 AND user_id IS NULL AND NOT is_denied
"""

_DECIDE = """
UPDATE accounts.oauth_device_grants SET user_id = $3, is_denied = ($3::text IS NULL)
WHERE user_code = $1 AND expires_ts > $2 AND user_id IS NULL AND NOT is_denied
RETURNING 1
"""

# Granted or denied, it is told once. An ended one is told too, so that the device stops asking.
_POLL = """
WITH found AS (SELECT * FROM accounts.oauth_device_grants WHERE code_hash = $1 AND client_id = $2 FOR UPDATE),
polled AS (
    UPDATE accounts.oauth_device_grants SET polled_ts = $3
    WHERE code_hash = (SELECT code_hash FROM found WHERE (user_id = $4::text) IS NOT TRUE AND NOT is_denied)
), told AS (
    DELETE FROM accounts.oauth_device_grants
    WHERE code_hash = (SELECT code_hash FROM found WHERE user_id = $4 OR is_denied)
)
SELECT client_id, device_id, scope, CASE WHEN user_id = $4 THEN user_id END, is_denied, polled_ts, expires_ts <= $3
FROM found
"""


async def add_task(
    tx: Transaction,
    task: str,
    browser: str,
    kind: str,
    details: Mapping[str, Any],
    *,
    expires_ts: int,
    now_ms: int,
    most: int,
) -> bool:
    """Remember what a browser has open; False if there are `most` already."""
    values = (hash_token(task), hash_token(browser), kind, orjson.dumps(details).decode(), expires_ts, now_ms, most)
    return await tx.fetchval(_ADD_TASK, *values) is not None


async def forget_oldest_tasks(tx: Transaction) -> None:
    """Forget some of those for which nobody has signed in yet."""
    await tx.execute(_FORGET_OLDEST)


async def forget_user(tx: Transaction, user_id: UserId) -> None:
    """What the user has begun or granted gets nobody in any longer; the caller holds users.lock_user."""
    await tx.execute(_FORGET_USER, user_id)


async def find_task(tx: Transaction, task: str, browser: str, now_ms: int) -> Task | None:
    """What a browser has open; None if it is unknown, has ended or is another browser's."""
    return _task(await tx.fetchrow(_FIND_TASK, hash_token(task), hash_token(browser), now_ms))


async def take_task(tx: Transaction, task: str, browser: str, now_ms: int) -> Task | None:
    """The same, and it is closed."""
    return _task(await tx.fetchrow(_TAKE_TASK, hash_token(task), hash_token(browser), now_ms))


async def sign_in(tx: Transaction, task: str, browser: str, renamed: str, user_id: UserId, now_ms: int) -> Task | None:
    """Somebody signed in for it; from now on it has another name. None as before, or if somebody had already."""
    values = (hash_token(task), hash_token(browser), now_ms, hash_token(renamed), user_id)
    return _task(await tx.fetchrow(_SIGN_IN, *values))


async def add_code(tx: Transaction, code: str, granted: Code, *, expires_ts: int, now_ms: int) -> None:
    """Keep an authorisation code."""
    await tx.execute(_ADD_CODE, hash_token(code), *granted[:-1], expires_ts, now_ms)


async def use_code(tx: Transaction, code: str, now_ms: int) -> Code | None:
    """What a code stands for; None if it is unknown or has ended."""
    row = await tx.fetchrow(_USE_CODE, hash_token(code), now_ms)
    return None if row is None else Code(row[0], UserId(row[1]), *row[2:])


async def find_code_user(tx: Transaction, code: str) -> UserId | None:
    """Whose code it is, used or not."""
    user_id = await tx.fetchval("SELECT user_id FROM accounts.oauth_codes WHERE code_hash = $1", hash_token(code))
    return None if user_id is None else UserId(user_id)


async def find_device_granter(tx: Transaction, device_code: str) -> UserId | None:
    """Who granted what a device asked for; None while nobody has."""
    query = "SELECT user_id FROM accounts.oauth_device_grants WHERE code_hash = $1"
    user_id = await tx.fetchval(query, hash_token(device_code))
    return None if user_id is None else UserId(user_id)


async def add_device_grant(
    tx: Transaction, device_code: str, user_code: str, grant: DeviceGrant, *, expires_ts: int, now_ms: int, most: int
) -> bool:
    """Keep what a device asks for; False if there are `most` already, or the user's code is taken."""
    values = (hash_token(device_code), user_code, grant.client_id, grant.device_id, grant.scope)
    return await tx.fetchval(_ADD_GRANT, *values, expires_ts, now_ms, most) is not None


async def find_device_grant(tx: Transaction, user_code: str, now_ms: int) -> DeviceGrant | None:
    """What the device that shows this code asks for; None if it has ended or was decided."""
    row = await tx.fetchrow(_FIND_BY_USER_CODE, user_code, now_ms)
    return None if row is None else DeviceGrant(*row)


async def decide_device_grant(tx: Transaction, user_code: str, user_id: UserId | None, now_ms: int) -> bool:
    """A user grants it, or nobody does; False if it has ended or was decided."""
    return await tx.fetchval(_DECIDE, user_code, now_ms, user_id) is not None


async def poll_device_grant(
    tx: Transaction, device_code: str, client_id: str, granter: UserId | None, now_ms: int
) -> DeviceGrant | None:
    """What has become of it, with when it was asked about before; a decision is told once.

    Args:
        granter: as `find_device_granter` said, locked by the caller; what somebody else granted is told the next time.
    """
    row = await tx.fetchrow(_POLL, hash_token(device_code), client_id, now_ms, granter)
    if row is None:
        return None
    client_id, device_id, scope, user_id, *rest = row
    return DeviceGrant(client_id, device_id, scope, None if user_id is None else UserId(user_id), *rest)


def _task(row: Any) -> Task | None:
    if row is None:
        return None
    return Task(row[0], orjson.loads(row[1]), None if row[2] is None else UserId(row[2]))
