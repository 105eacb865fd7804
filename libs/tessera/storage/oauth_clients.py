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

# The sweep is bounded, so that one request does not pay for all.
_ADD = """
WITH swept AS (
    DELETE FROM accounts.oauth_clients WHERE client_id = ANY(ARRAY(
        SELECT client_id FROM accounts.oauth_clients c
        WHERE used_ts < $5 AND digest <> $2
          AND NOT EXISTS (SELECT FROM accounts.oauth_sessions s WHERE s.client_id = c.client_id)
        ORDER BY used_ts LIMIT 20 FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO accounts.oauth_clients AS c (client_id, digest, metadata, used_ts)
SELECT $1, $2, $3, $4 WHERE (SELECT count(*) FROM (SELECT FROM accounts.oauth_clients LIMIT $6) counted) < $6
    OR EXISTS (SELECT FROM accounts.oauth_clients WHERE digest = $2)
ON CONFLICT (digest) DO UPDATE SET used_ts = greatest(c.used_ts, EXCLUDED.used_ts)
RETURNING client_id
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
    """Register a client: its ID, or that of an equal one; None if there are `most` already. Sweeps unused ones."""
    body = orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS)
    found: str | None = await tx.fetchval(
        _ADD, client_id, sha256(body).digest(), body.decode(), now_ms, now_ms - UNUSED_MS, most
    )
    return found


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
