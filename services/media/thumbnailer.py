"""Makes thumbnails on a few threads and keeps those of the usual sizes beside their source."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from services.media.disk_store import DiskStore, StoredObject
from services.media.thumbnails import (
    Thumbnail,
    ThumbnailRequest,
    ThumbnailSize,
    choose_size,
    content_type_of,
    make_thumbnail,
)
from tessera.http.errors import LimitExceeded

# One image of the largest size takes about a hundred megabytes while it is decoded.
THREADS = 2
MAX_WAITING = 64
RETRY_AFTER_MS = 2000
SIGNATURE_BYTES = 12


@dataclass(frozen=True, slots=True)
class ServedThumbnail:
    """What answers a request: bytes at hand, or an object to stream."""

    content_type: str
    content: bytes | StoredObject


class Thumbnailer:
    """Thumbnails of the objects of one store. Two requests for the same one share the work."""

    def __init__(self, store: DiskStore, max_pixels: int) -> None:
        self._store = store
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="thumbnail")
        self._running: dict[tuple[str, ThumbnailSize], asyncio.Task[Thumbnail]] = {}

    def close(self) -> None:
        """End the threads; the thumbnails being made are finished first."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def get(self, object_key: str, request: ThumbnailRequest) -> ServedThumbnail:
        """The thumbnail of an image.

        Raises:
            NoThumbnail, ImageTooLarge: see make_thumbnail.
            LimitExceeded: too many are being made.
        """
        size = choose_size(request)
        if size.kept:
            kept = await self._store.find_thumbnail(object_key, size.variant)
            if kept is not None:
                return ServedThumbnail(content_type_of(await kept.peek(SIGNATURE_BYTES)), kept)
        thumbnail = await self._make(object_key, size)
        if thumbnail.content is not None:
            return ServedThumbnail(thumbnail.content_type, thumbnail.content)
        original = await self._store.find(object_key)
        if original is None:
            raise FileNotFoundError(object_key)
        return ServedThumbnail(thumbnail.content_type, original)

    async def _make(self, object_key: str, size: ThumbnailSize) -> Thumbnail:
        task = self._running.get((object_key, size))
        if task is None:
            if len(self._running) >= MAX_WAITING:
                raise LimitExceeded(RETRY_AFTER_MS)
            task = asyncio.create_task(self._make_and_keep(object_key, size))
            self._running[object_key, size] = task
            task.add_done_callback(lambda _: self._running.pop((object_key, size), None))
        # A client that goes away must not cancel the work that others share.
        return await asyncio.shield(task)

    async def _make_and_keep(self, object_key: str, size: ThumbnailSize) -> Thumbnail:
        source = self._store.path_of(object_key)
        thumbnail = await asyncio.get_running_loop().run_in_executor(
            self._threads, make_thumbnail, source, size, self._max_pixels
        )
        if size.kept and thumbnail.content is not None:
            await self._store.add_thumbnail(object_key, size.variant, thumbnail.content)
        return thumbnail
