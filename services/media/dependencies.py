"""What the media handlers work with: built once in main.py, reached through the application's state."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from matrixcore.identifiers import ServerName, UserId
from services.media.disk_store import DiskStore
from services.media.thumbnailer import Thumbnailer
from tessera.clock import Clock
from tessera.http.limits import RateLimits
from tessera.ids import IdSource
from tessera.storage.database import Database
from tessera.storage.media import MediaRow


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The settings of the content repository.

    Attributes:
        authenticated: what is uploaded from now on is served on the authenticated paths only, and the old paths
            serve only what was uploaded before (Synapse's enable_authenticated_media).
        unused_lifetime_ms: a reserved ID without content is void after so long.
    """

    max_upload_bytes: int = 50 * 1024 * 1024
    max_image_pixels: int = 32 * 1024 * 1024
    max_pending_uploads: int = 5
    unused_lifetime_ms: int = 24 * 3600 * 1000
    authenticated: bool = True


class LinkPreviewer(Protocol):
    """`services.media.previews.Previewer`."""

    async def get(self, media: "MediaDeps", user_id: UserId, url: str) -> bytes:
        """The preview of a URL as JSON."""


class RemoteFinder(Protocol):
    """`services.media.remote.RemoteMedia`."""

    async def find(self, server_name: str, media_id: str) -> MediaRow | None:
        """The row of another server's media. Raises MatrixError."""


@dataclass(frozen=True, slots=True)
class MediaDeps:
    """Everything that outlives a request.

    Attributes:
        uploads: one place for each upload that is being received.
        waiters: one place for each download that waits for content to come.
        previewer: None where the operator wants no link previews.
        remote: fetches what other servers have; None without federation.
    """

    server_name: ServerName
    clock: Clock
    ids: IdSource
    accounts: Database
    store: DiskStore
    thumbnailer: Thumbnailer
    limits: MediaLimits
    uploads: asyncio.Semaphore
    waiters: asyncio.Semaphore
    rates: RateLimits
    previewer: LinkPreviewer | None = None
    remote: RemoteFinder | None = None

    def close(self) -> None:
        """End the threads; blocks until what they are doing is finished."""
        self.thumbnailer.close()
        self.store.close()


def media_of(request: Request) -> MediaDeps:
    """The dependencies of the application that serves the request."""
    media: MediaDeps = request.app.state.media
    return media
