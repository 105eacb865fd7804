"""What is known about media: IDs that were reserved, and content that was uploaded.

Spec: C-S API §Content repository.
"""

from dataclasses import dataclass

from matrixcore.identifiers import ServerName, UserId
from tessera.storage.database import Transaction

LOCK_USER = "SELECT pg_advisory_xact_lock(hashtextextended($1, 7004))"

FIND = """
SELECT media_id, user_id, expires_ts, uploaded_ts, content_type, filename, size_bytes, object_key, authenticated
FROM accounts.media WHERE origin = $1 AND media_id = $2
"""

ADD_UPLOADED = """
INSERT INTO accounts.media
    (origin, media_id, user_id, created_ts, uploaded_ts, content_type, filename, size_bytes, object_key, authenticated)
VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8, $9)
"""

ADD_FETCHED = ADD_UPLOADED.rstrip() + " ON CONFLICT (origin, media_id) DO NOTHING RETURNING true"

COUNT_PENDING = """
SELECT count(*), min(expires_ts) FROM accounts.media
WHERE user_id = $1 AND uploaded_ts IS NULL AND expires_ts > $2
"""

ADD_RESERVED = """
INSERT INTO accounts.media (origin, media_id, user_id, created_ts, expires_ts, authenticated)
VALUES ($1, $2, $3, $4, $5, $6)
"""

# An ID gets its content once; of two uploads to one ID the first commit wins.
FILL = """
UPDATE accounts.media SET
    uploaded_ts = $4, expires_ts = NULL, content_type = $5, filename = $6, size_bytes = $7, object_key = $8,
    authenticated = $9
WHERE origin = $1 AND media_id = $2 AND user_id = $3 AND uploaded_ts IS NULL
RETURNING true
"""

DELETE_EXPIRED = """
DELETE FROM accounts.media WHERE user_id = $1 AND uploaded_ts IS NULL AND expires_ts <= $2
"""

DELETE_ALL_EXPIRED = """
DELETE FROM accounts.media WHERE (origin, media_id) IN (
    SELECT origin, media_id FROM accounts.media WHERE uploaded_ts IS NULL AND expires_ts <= $1 LIMIT $2
) AND uploaded_ts IS NULL
"""

LIST_NAMED = "SELECT object_key FROM accounts.media WHERE object_key = ANY($1::text[])"

LIST_OBJECT_KEYS = """
SELECT object_key FROM accounts.media WHERE object_key IS NOT NULL AND object_key > $1 ORDER BY object_key LIMIT $2
"""


@dataclass(frozen=True, slots=True)
class MediaRow:
    """One media ID; from content_type on everything is None until there is content. Times in ms."""

    media_id: str
    user_id: UserId
    expires_ts: int | None
    uploaded_ts: int | None
    content_type: str | None
    filename: str | None
    size_bytes: int | None
    object_key: str | None
    authenticated: bool


@dataclass(frozen=True, slots=True)
class UploadedContent:
    """Content that lies in the object store under `object_key`."""

    content_type: str
    filename: str | None
    size_bytes: int
    object_key: str
    authenticated: bool


async def find(tx: Transaction, origin: ServerName, media_id: str) -> MediaRow | None:
    """A media ID, with content, reserved or expired."""
    row = await tx.fetchrow(FIND, origin, media_id)
    return None if row is None else MediaRow(*row)


async def add_uploaded(
    tx: Transaction, origin: ServerName, media_id: str, user_id: UserId, now_ms: int, content: UploadedContent
) -> None:
    """Record content under a new ID."""
    await tx.execute(ADD_UPLOADED, origin, media_id, user_id, now_ms, *_columns(content))


async def add_fetched(
    tx: Transaction, origin: ServerName, media_id: str, user_id: UserId, now_ms: int, content: UploadedContent
) -> bool:
    """Record what another server had; False if somebody else was first, and theirs stays."""
    added = await tx.fetchval(ADD_FETCHED, origin, media_id, user_id, now_ms, *_columns(content))
    return added is not None


async def count_pending(tx: Transaction, user_id: UserId, now_ms: int) -> tuple[int, int | None]:
    """How many reserved IDs of the user wait for content, and when the first of them expires.

    Holds off other reservations of the user until the transaction ends, and forgets the expired ones.
    """
    await tx.execute(LOCK_USER, user_id)
    await tx.execute(DELETE_EXPIRED, user_id, now_ms)
    row = await tx.fetchrow(COUNT_PENDING, user_id, now_ms)
    assert row is not None
    return row[0], row[1]


async def add_reserved(
    tx: Transaction,
    origin: ServerName,
    media_id: str,
    user_id: UserId,
    now_ms: int,
    expires_ms: int,
    *,
    authenticated: bool,
) -> None:
    """Reserve a new ID for content that comes later."""
    await tx.execute(ADD_RESERVED, origin, media_id, user_id, now_ms, expires_ms, authenticated)


async def fill_reserved(
    tx: Transaction, origin: ServerName, media_id: str, user_id: UserId, now_ms: int, content: UploadedContent
) -> bool:
    """Give a reserved ID of this user its content; False if it has some already, or is not there."""
    filled = await tx.fetchval(FILL, origin, media_id, user_id, now_ms, *_columns(content))
    return filled is not None


async def delete_expired(tx: Transaction, now_ms: int, limit: int) -> int:
    """Forget reserved IDs whose time is over; answers how many, at most `limit`."""
    tag = await tx.execute(DELETE_ALL_EXPIRED, now_ms, limit)
    return int(tag.rpartition(" ")[2])


async def list_named(tx: Transaction, object_keys: list[str]) -> set[str]:
    """Those of the objects that a row names."""
    return {row[0] for row in await tx.fetch(LIST_NAMED, object_keys)}


async def list_object_keys(tx: Transaction, after: str, limit: int) -> list[str]:
    """Keys of objects that rows name, in their order, after `after`."""
    return [row[0] for row in await tx.fetch(LIST_OBJECT_KEYS, after, limit)]


def _columns(content: UploadedContent) -> tuple[str, str | None, int, str, bool]:
    return content.content_type, content.filename, content.size_bytes, content.object_key, content.authenticated
