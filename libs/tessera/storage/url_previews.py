"""Previews of links that were made lately, and the images that belong to them.

Spec: C-S API GET /media/preview_url.
"""

from typing import NamedTuple

from matrixcore.identifiers import ServerName
from tessera.storage.database import Transaction


class StoredPreview(NamedTuple):
    """A preview; body is JSON, or None where the page could not be had."""

    expires_ts: int
    body: bytes | None


_FIND = "SELECT expires_ts, body FROM accounts.url_previews WHERE url_hash = $1"

_SET = """
INSERT INTO accounts.url_previews (url_hash, fetched_ts, expires_ts, body) VALUES ($1, $2, $3, $4)
ON CONFLICT (url_hash) DO UPDATE SET
    fetched_ts = EXCLUDED.fetched_ts, expires_ts = EXCLUDED.expires_ts, body = EXCLUDED.body
"""

_ADD_IMAGE = "INSERT INTO accounts.preview_images (origin, media_id, created_ts) VALUES ($1, $2, $3)"

_DELETE_EXPIRED = """
DELETE FROM accounts.url_previews WHERE url_hash IN (
    SELECT url_hash FROM accounts.url_previews WHERE expires_ts < $1 ORDER BY expires_ts LIMIT $2
)
"""

_DELETE_IMAGES = """
WITH old AS (
    DELETE FROM accounts.preview_images WHERE (origin, media_id) IN (
        SELECT origin, media_id FROM accounts.preview_images WHERE created_ts < $1 ORDER BY created_ts LIMIT $2
    )
    RETURNING origin, media_id
)
DELETE FROM accounts.media m USING old WHERE m.origin = old.origin AND m.media_id = old.media_id
RETURNING m.object_key
"""


async def find_preview(tx: Transaction, url_hash: bytes) -> StoredPreview | None:
    """What is kept of a URL, expired or not."""
    row = await tx.fetchrow(_FIND, url_hash)
    return None if row is None else StoredPreview(*row)


async def set_preview(tx: Transaction, url_hash: bytes, body: bytes | None, *, now_ms: int, expires_ts: int) -> None:
    """Keep what was found of a URL."""
    await tx.execute(_SET, url_hash, now_ms, expires_ts, body)


async def add_image(tx: Transaction, origin: ServerName, media_id: str, now_ms: int) -> None:
    """Note that content was stored for a preview."""
    await tx.execute(_ADD_IMAGE, origin, media_id, now_ms)


async def delete_expired(tx: Transaction, before_ts: int, limit: int) -> int:
    """Forget previews that expired before that moment; answers how many, at most `limit`."""
    tag = await tx.execute(_DELETE_EXPIRED, before_ts, limit)
    return int(tag.rpartition(" ")[2])


async def delete_images(tx: Transaction, before_ts: int, limit: int) -> list[str]:
    """Forget images that were stored before that moment; their object keys, whose objects the caller deletes."""
    return [row[0] for row in await tx.fetch(_DELETE_IMAGES, before_ts, limit)]
