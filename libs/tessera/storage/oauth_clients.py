"""Clients that registered with the OAuth 2.0 API, and the sessions that they got.

Spec: C-S API §Client registration.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

UNUSED_MS = 7 * 24 * 60 * 60 * 1000  # a client without sessions is forgotten after that

# The sweep is bounded, so that one request does not pay for all. Clients that are in use go to the end of the queue.
_SWEEP = """
WITH oldest AS MATERIALIZED (
    SELECT client_id, EXISTS (SELECT FROM accounts.oauth_sessions s WHERE s.client_id = c.client_id) AS is_in_use
    FROM accounts.oauth_clients c WHERE used_ts < $1 ORDER BY used_ts LIMIT 20 FOR UPDATE SKIP LOCKED
), kept AS (
    UPDATE accounts.oauth_clients SET used_ts = $2
    WHERE client_id = ANY(ARRAY(SELECT client_id FROM oldest WHERE is_in_use))
)
DELETE FROM accounts.oauth_clients WHERE client_id = ANY(ARRAY(SELECT client_id FROM oldest WHERE NOT is_in_use))
"""

_ADD = """
INSERT INTO accounts.oauth_clients AS c (client_id, digest, metadata, used_ts)
SELECT $1, $2, $3, $4 WHERE (SELECT count(*) FROM (SELECT FROM accounts.oauth_clients LIMIT $5) counted) < $5
    OR EXISTS (SELECT FROM accounts.oauth_clients WHERE digest = $2)
ON CONFLICT (digest) DO UPDATE SET used_ts = greatest(c.used_ts, EXCLUDED.used_ts)
RETURNING client_id
"""

# Not with each login: once a day says enough.
_NOTE_USE = """
UPDATE accounts.oauth_clients SET used_ts = $2::bigint WHERE client_id = $1 AND used_ts < $2::bigint - 86400000
"""

_FIND = "SELECT metadata FROM accounts.oauth_clients WHERE client_id = $1"

_ADD_SESSION = """
WITH used AS (UPDATE accounts.oauth_clients SET used_ts = greatest(used_ts, $4) WHERE client_id = $3)
INSERT INTO accounts.oauth_sessions (user_id, device_id, client_id) VALUES ($1, $2, $3)
ON CONFLICT (user_id, device_id) DO UPDATE SET client_id = EXCLUDED.client_id
"""

_FIND_SESSION = "SELECT client_id FROM accounts.oauth_sessions WHERE user_id = $1 AND device_id = $2"


async def add_client(
    tx: Transaction, client_id: str, metadata: Mapping[str, Any], *, now_ms: int, most: int
) -> str | None:
    """Register a client: its ID, or that of an equal one; None if there are `most` already."""
    body = orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS)
    found: str | None = await tx.fetchval(_ADD, client_id, sha256(body).digest(), body.decode(), now_ms, most)
    return found


async def forget_unused(tx: Transaction, before_ms: int, now_ms: int) -> None:
    """Forget some of the clients that have no session and were last used before; a transaction of its own."""
    await tx.execute(_SWEEP, before_ms, now_ms)


async def note_use(tx: Transaction, client_id: str, now_ms: int) -> None:
    """Somebody is logging in with the client: it is not forgotten meanwhile."""
    await tx.execute(_NOTE_USE, client_id, now_ms)


async def find_client(tx: Transaction, client_id: str) -> dict[str, Any] | None:
    """A client's metadata, as it was registered."""
    metadata = await tx.fetchval(_FIND, client_id)
    if metadata is None:
        return None
    found: dict[str, Any] = orjson.loads(metadata)
    return found


async def add_session(tx: Transaction, user_id: UserId, device_id: str, client_id: str, now_ms: int) -> None:
    """A client has got tokens for the device, which is there; they end with it."""
    await tx.execute(_ADD_SESSION, user_id, device_id, client_id, now_ms)


async def find_session_client(tx: Transaction, user_id: UserId, device_id: str) -> str | None:
    """The client that the device's tokens are of; None if they are not of the OAuth 2.0 API."""
    client_id: str | None = await tx.fetchval(_FIND_SESSION, user_id, device_id)
    return client_id
