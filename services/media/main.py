"""Puts the media service together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from services.media import federated, sweeping
from services.media.dependencies import MediaDeps, MediaLimits
from services.media.disk_store import DiskStore
from services.media.remote import RemoteMedia
from services.media.routes import media_routes
from services.media.thumbnailer import Thumbnailer
from tessera.clock import Clock
from tessera.config import Settings
from tessera.config.settings import PRIVATE_NETWORKS
from tessera.http.limits import RateLimits
from tessera.ids import IdSource
from tessera.service import CannotStart, Service, Surroundings
from tessera.storage.database import Database

if TYPE_CHECKING:
    from services.media.previews import Previewer

# An upload holds at most about 600 KiB of memory, a waiting download next to nothing.
MAX_UPLOADS = 64
MAX_WAITERS = 256


@asynccontextmanager
async def open_media(around: Surroundings) -> AsyncIterator[Service]:
    """The content repository.

    Raises:
        CannotStart: the directory cannot be made.
    """
    settings = around.settings
    try:
        media = build_media(settings, around.accounts, around.clock, around.ids, around.limits)
    except OSError as error:
        raise CannotStart(f"media_store_path: {settings.media_directory} cannot be used: {error.strerror}") from error
    previewer = _previewer(settings) if settings.url_preview_enabled else None
    remote = None
    if around.federation is not None and around.federation.policy.enabled:
        client = around.federation.client
        limit = settings.max_upload_size
        remote = RemoteMedia(client, around.accounts, media.store, around.clock, around.ids, limit)
    try:
        yield Service(
            routes={"media": media_routes(), "federation": federated.routes},
            state={"media": replace(media, previewer=previewer, remote=remote)},
            background=(lambda: sweeping.run(media),),
        )
    finally:
        if remote is not None:
            await remote.close()
        if previewer is not None:
            await previewer.close()
        media.close()


def _previewer(settings: Settings) -> "Previewer":
    """Networks of this machine and its neighbours are never looked at, whatever else the operator forbids."""
    # The HTTP client takes memory, and most servers make no previews.
    from services.media.page_fetching import PageFetcher
    from services.media.previews import PARALLEL, Previewer, PreviewLimits

    fetcher = PageFetcher(
        blocked=(*PRIVATE_NETWORKS, *settings.url_preview_ip_range_blacklist),
        allowed=settings.url_preview_ip_range_whitelist,
        forbidden=settings.url_preview_url_blacklist,
        languages=settings.url_preview_accept_language,
        connections=2 * PARALLEL,
    )
    return Previewer(fetcher, PreviewLimits(settings.max_spider_size))


def build_media(settings: Settings, accounts: Database, clock: Clock, ids: IdSource, rates: RateLimits) -> MediaDeps:
    """What goes to `app.state.media` beside `app.state.authenticator`; the caller closes it at the end.

    Makes the media directory if it is not there.
    """
    store = DiskStore(settings.media_directory)
    return MediaDeps(
        server_name=settings.server_name,
        clock=clock,
        ids=ids,
        accounts=accounts,
        store=store,
        thumbnailer=Thumbnailer(store, settings.max_image_pixels),
        limits=MediaLimits(
            max_upload_bytes=settings.max_upload_size,
            max_image_pixels=settings.max_image_pixels,
            max_pending_uploads=settings.max_pending_media_uploads,
            unused_lifetime_ms=settings.unused_expiration_time,
            authenticated=settings.enable_authenticated_media,
        ),
        uploads=asyncio.Semaphore(MAX_UPLOADS),
        waiters=asyncio.Semaphore(MAX_WAITERS),
        rates=rates,
    )
