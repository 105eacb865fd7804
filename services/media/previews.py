"""Previews of links: one look at the page for everybody who asks, and the answer kept for a while.

Spec: C-S API GET /media/preview_url.
"""

import asyncio
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson
import structlog

from matrixcore.identifiers import UserId
from services.media.dependencies import MediaDeps
from services.media.page_fetching import Fetched, ForbiddenUrl, PageFetcher, Unfetchable
from services.media.page_process import UnreadablePage, read_page_apart
from services.media.preview_images import store_image
from tessera.http.errors import Forbidden, LimitExceeded, MatrixError
from tessera.storage import url_previews

PAGE_BYTES = 512 * 1024  # what is looked at of a page: its head comes first
KEPT_MS = 3_600_000
KEPT_FAILURE_MS = 300_000
DEADLINE_SECONDS = 25.0  # below a handler's own
PARALLEL = 8
MAX_WAITING = 100
RETRY_AFTER_MS = 2_000
HTML_TYPES = frozenset(("text/html", "application/xhtml+xml"))

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PreviewLimits:
    """The operator's bounds: of an image, in bytes."""

    max_image_bytes: int = 10 << 20


class Previewer:
    """Makes previews. Requests for one URL at the same time share the work."""

    def __init__(self, fetcher: PageFetcher, limits: PreviewLimits) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._places = asyncio.Semaphore(PARALLEL)
        self._running: dict[str, asyncio.Task[bytes | None]] = {}

    async def close(self) -> None:
        """Give up what is being fetched."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._fetcher.close()

    async def get(self, media: MediaDeps, user_id: UserId, url: str) -> bytes:
        """The preview of a URL as JSON.

        Args:
            user_id: who asks; an image is stored in this name.

        Raises:
            Forbidden: the operator wants no previews of it.
            MatrixError: it cannot be had (502). LimitExceeded: too many are being made.
        """
        try:
            self._fetcher.check(url)
        except ForbiddenUrl:
            raise Forbidden("Previews of this address are not made here") from None
        except Unfetchable:
            raise _unavailable() from None
        async with media.accounts.reading() as tx:
            kept = await url_previews.find_preview(tx, _hash(url))
        if kept is not None and kept.expires_ts > media.clock.now_ms():
            body = kept.body
        else:
            body = await self._shared(media, user_id, url)
        if body is None:
            raise _unavailable()
        return body

    async def _shared(self, media: MediaDeps, user_id: UserId, url: str) -> bytes | None:
        task = self._running.get(url)
        if task is None:
            if len(self._running) >= MAX_WAITING:
                raise LimitExceeded(RETRY_AFTER_MS)
            task = asyncio.create_task(self._make_and_keep(media, user_id, url))
            self._running[url] = task
            task.add_done_callback(lambda done: self._forget(url, done))
        # A client that goes away must not cancel the work that others share.
        return await asyncio.shield(task)

    def _forget(self, url: str, done: asyncio.Task[bytes | None]) -> None:
        self._running.pop(url, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.warning("preview failed", error=type(error).__name__)

    async def _make_and_keep(self, media: MediaDeps, user_id: UserId, url: str) -> bytes | None:
        body: bytes | None = None
        try:
            async with self._places, asyncio.timeout(DEADLINE_SECONDS):
                body = orjson.dumps(await self._make(media, user_id, url))
        except (Unfetchable, ForbiddenUrl, UnreadablePage, TimeoutError) as error:
            log.info("no preview", reason=str(error) or type(error).__name__)
        now_ms = media.clock.now_ms()
        expires_ts = now_ms + (KEPT_FAILURE_MS if body is None else KEPT_MS)
        async with media.accounts.reading() as tx:
            await url_previews.set_preview(tx, _hash(url), body, now_ms=now_ms, expires_ts=expires_ts)
        return body

    async def _make(self, media: MediaDeps, user_id: UserId, url: str) -> dict[str, Any]:
        async with self._fetcher.open(url) as fetched:
            if fetched.content_type.startswith("image/"):
                return await self._store_image(media, user_id, fetched)
            if fetched.content_type not in HTML_TYPES:
                return {}
            content = await fetched.read_up_to(PAGE_BYTES)
        summary = await read_page_apart(content, fetched.charset, fetched.url)
        preview: dict[str, Any] = dict(summary.fields)
        if summary.image_url is not None:
            try:
                async with self._fetcher.open(summary.image_url) as image:
                    if image.content_type.startswith("image/"):
                        preview |= await self._store_image(media, user_id, image)
            except (Unfetchable, ForbiddenUrl) as error:
                log.info("preview without its image", reason=str(error) or type(error).__name__)
        return preview

    async def _store_image(self, media: MediaDeps, user_id: UserId, fetched: Fetched) -> dict[str, Any]:
        return await store_image(media, user_id, fetched, self._limits.max_image_bytes)


def _hash(url: str) -> bytes:
    return sha256(url.encode("utf-8", "surrogatepass")).digest()


def _unavailable() -> MatrixError:
    return MatrixError("The address does not answer with a page", errcode="M_UNKNOWN", status=502)
