"""Uploading content and finding it again.

The order that keeps acknowledged content safe: the bytes are synced to the disk, then the row that names them is
committed, then the client is answered.

Spec: C-S API §Content repository.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from matrixcore.identifiers import UserId
from services.media.dependencies import MediaDeps
from services.media.disk_store import ObjectTooLarge, ObjectWriter
from services.media.response_headers import clean_content_type, clean_filename
from tessera.http.errors import Forbidden, LimitExceeded, MatrixError, NotFound, TooLarge
from tessera.storage import media
from tessera.storage.media import MediaRow, UploadedContent

DEFAULT_WAIT_MS = 20_000
MAX_WAIT_MS = 60_000
POLL_SECONDS = 0.5
RETRY_AFTER_MS = 1000
MAX_REMOTE_ID = 255

_MEDIA_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True, slots=True)
class Upload:
    """A request's content; `declared_bytes` is its Content-Length, if it has one."""

    content_type: str | None
    filename: str | None
    declared_bytes: int | None
    chunks: AsyncIterator[bytes]


async def upload(deps: MediaDeps, user_id: UserId, given: Upload) -> str:
    """Store content under a new media ID, and answer that.

    Raises:
        MatrixError: 413 M_TOO_LARGE. LimitExceeded: too many uploads at once.
    """
    content = await _receive(deps, given)
    media_id = deps.ids.media_id()
    async with deps.accounts.reading() as tx:  # one statement, which commits by itself
        await media.add_uploaded(tx, deps.server_name, media_id, user_id, deps.clock.now_ms(), content)
    return media_id


async def reserve(deps: MediaDeps, user_id: UserId) -> tuple[str, int]:
    """A new media ID whose content comes later, and the time (ms) at which it becomes void.

    Raises:
        LimitExceeded: the user has as many of them as one may have.
    """
    now_ms = deps.clock.now_ms()
    media_id, expires_ms = deps.ids.media_id(), now_ms + deps.limits.unused_lifetime_ms
    async with deps.accounts.transaction() as tx:
        pending, first_expiry_ms = await media.count_pending(tx, user_id, now_ms)
        if pending >= deps.limits.max_pending_uploads:
            raise LimitExceeded(max(RETRY_AFTER_MS, (first_expiry_ms or now_ms) - now_ms))
        await media.add_reserved(
            tx, deps.server_name, media_id, user_id, now_ms, expires_ms, authenticated=deps.limits.authenticated
        )
    return media_id, expires_ms


async def upload_to(deps: MediaDeps, user_id: UserId, server_name: str, media_id: str, given: Upload) -> None:
    """Store content under a media ID that the user has reserved.

    Raises:
        NotFound: never reserved, or expired.
        Forbidden: somebody else's.
        MatrixError: 409 M_CANNOT_OVERWRITE_MEDIA when it has content, 413 M_TOO_LARGE.
        LimitExceeded: too many uploads at once.
    """
    row = await _find_row(deps, server_name, media_id)
    if row is None:
        raise NotFound("Unknown media ID")
    if row.user_id != user_id:
        raise Forbidden("The media ID was reserved by another user")
    if row.uploaded_ts is not None:
        raise _already_uploaded()
    if row.expires_ts is not None and row.expires_ts <= deps.clock.now_ms():
        raise NotFound("The media ID has expired")
    content = await _receive(deps, given)
    async with deps.accounts.transaction() as tx:
        filled = await media.fill_reserved(tx, deps.server_name, media_id, user_id, deps.clock.now_ms(), content)
    if not filled:
        await deps.store.delete(content.object_key)
        raise _already_uploaded()


async def get_content(
    deps: MediaDeps,
    server_name: str,
    media_id: str,
    wait_ms: int,
    *,
    authenticated: bool,
    allow_remote: bool = True,
) -> UploadedContent:
    """The content of a media ID, waiting for it if the ID is reserved.

    Args:
        wait_ms: at most MAX_WAIT_MS count, and none at all while too many others wait.
        authenticated: whether the request came with an access token on one of the new paths.
        allow_remote: whether another server may be asked for what it has. Who has no account here gets nothing fetched.

    Raises:
        NotFound: unknown, expired, or not to be had on this path.
        MatrixError: 504 M_NOT_YET_UPLOADED; 502: its server cannot be asked.
    """
    if server_name != deps.server_name:
        row = await _find_remote(deps, server_name, media_id, allow_remote=allow_remote and authenticated)
    else:
        row = await _find_row(deps, server_name, media_id)
    if row is not None and row.uploaded_ts is None and not deps.waiters.locked():
        async with deps.waiters:
            row = await _wait_for_upload(deps, media_id, row, min(max(wait_ms, 0), MAX_WAIT_MS))
    if row is None or (row.uploaded_ts is None and (row.expires_ts or 0) <= deps.clock.now_ms()):
        raise NotFound("Not found")
    if row.authenticated and deps.limits.authenticated and not authenticated:
        raise NotFound("Not found")
    if row.uploaded_ts is None:
        raise MatrixError("Content has not yet been uploaded", errcode="M_NOT_YET_UPLOADED", status=504)
    assert row.content_type is not None
    assert row.size_bytes is not None
    assert row.object_key is not None
    return UploadedContent(row.content_type, row.filename, row.size_bytes, row.object_key, row.authenticated)


async def _wait_for_upload(deps: MediaDeps, media_id: str, row: MediaRow, wait_ms: int) -> MediaRow | None:
    found: MediaRow | None = row
    deadline = deps.clock.monotonic() + wait_ms / 1000
    while found is not None and found.uploaded_ts is None:
        left = deadline - deps.clock.monotonic()
        if left <= 0 or (found.expires_ts or 0) <= deps.clock.now_ms():
            break
        await deps.clock.sleep(min(left, POLL_SECONDS))
        found = await _find_row(deps, deps.server_name, media_id)
    return found


async def _find_row(deps: MediaDeps, server_name: str, media_id: str) -> MediaRow | None:
    """The row of a media ID of this server; anything that is no media ID is simply not there."""
    if server_name != deps.server_name or not _MEDIA_ID.fullmatch(media_id):
        return None
    async with deps.accounts.reading() as tx:
        return await media.find(tx, deps.server_name, media_id)


async def _find_remote(deps: MediaDeps, server_name: str, media_id: str, *, allow_remote: bool) -> MediaRow | None:
    """The row of another server's media ID, fetched if it may be."""
    if deps.remote is None or not allow_remote or not 0 < len(media_id) <= MAX_REMOTE_ID or "\0" in media_id:
        return None
    return await deps.remote.find(server_name, media_id)


async def _receive(deps: MediaDeps, given: Upload) -> UploadedContent:
    """Take a request's content into the store."""
    if (given.declared_bytes or 0) > deps.limits.max_upload_bytes:
        raise _too_large(deps)
    if deps.uploads.locked():
        raise LimitExceeded(RETRY_AFTER_MS)
    async with deps.uploads:
        writer = deps.store.create(deps.ids.token(), deps.limits.max_upload_bytes)
        try:
            await _write_all(writer, given)
        except ObjectTooLarge:
            await writer.discard()
            raise _too_large(deps) from None
        except BaseException:
            await writer.discard()
            raise
    return UploadedContent(
        clean_content_type(given.content_type),
        clean_filename(given.filename),
        writer.size_bytes,
        writer.key,
        deps.limits.authenticated,
    )


async def _write_all(writer: ObjectWriter, given: Upload) -> None:
    async for chunk in given.chunks:
        await writer.write(chunk)
    await writer.finish()


def _too_large(deps: MediaDeps) -> TooLarge:
    return TooLarge(f"Cannot upload files larger than {deps.limits.max_upload_bytes} bytes")


def _already_uploaded() -> MatrixError:
    return MatrixError("Media already uploaded", errcode="M_CANNOT_OVERWRITE_MEDIA", status=409)
