"""Media of other servers: fetched once, kept like our own.

The authenticated endpoint between servers comes first, and what servers had before it where that is not known.

Spec: S-S API §Content Repository; C-S API §Content repository.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.message import Message

import structlog

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, parse_server_name
from services.media.disk_store import DiskStore, ObjectTooLarge
from services.media.multipart import BadMultipart, MultipartReader, boundary_of
from services.media.response_headers import clean_content_type, clean_filename
from tessera.clock import Clock
from tessera.federation.client import FederationClient, endpoint
from tessera.federation.errors import PeerAnsweredBadly, PeerError, PeerRefused
from tessera.http.errors import MatrixError, NotFound, TooLarge
from tessera.ids import IdSource
from tessera.storage import media
from tessera.storage.database import Database
from tessera.storage.media import MediaRow, UploadedContent

log = structlog.get_logger(__name__)

FETCH_SECONDS = 60.0
MAX_FETCHES = 32
MAX_METADATA_BYTES = 64 << 10
PATH = "/_matrix/federation/v1/media/download/{}"
OLD_PATH = "/_matrix/media/v3/download/{}/{}"
NOBODY = UserId("")  # owns what came from elsewhere


@dataclass(slots=True)
class RemoteMedia:
    """Fetches what is not here yet, each thing once at a time."""

    client: FederationClient
    accounts: Database
    store: DiskStore
    clock: Clock
    ids: IdSource
    max_bytes: int
    _fetching: OrderedDict[tuple[ServerName, str], asyncio.Task[None]] = field(default_factory=OrderedDict)

    async def find(self, server_name: str, media_id: str) -> MediaRow | None:
        """The row of another server's media, after it was fetched if need be; None if there is no such thing.

        Raises:
            MatrixError: its server cannot be asked (502), or too much is being fetched (429). TooLarge
        """
        try:
            origin = parse_server_name(server_name)
        except InvalidIdentifier:
            return None
        async with self.accounts.reading() as tx:
            row = await media.find(tx, origin, media_id)
        if row is not None:
            return row
        await self._fetch_once(origin, media_id)
        async with self.accounts.reading() as tx:
            return await media.find(tx, origin, media_id)

    async def close(self) -> None:
        """End what is being fetched."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _fetch_once(self, origin: ServerName, media_id: str) -> None:
        key = (origin, media_id)
        task = self._fetching.get(key)
        if task is None:
            if len(self._fetching) >= MAX_FETCHES:
                raise MatrixError("Too much is being fetched", errcode="M_LIMIT_EXCEEDED", status=429)
            task = asyncio.create_task(self._fetch(origin, media_id))
            self._fetching[key] = task
            task.add_done_callback(lambda _: self._fetching.pop(key, None))
        await asyncio.shield(task)

    async def _fetch(self, origin: ServerName, media_id: str) -> None:
        try:
            try:
                await self._fetch_authenticated(origin, media_id)
            except PeerRefused as refused:
                if refused.status != 404 or refused.errcode != "M_UNRECOGNIZED":
                    raise
                await self._fetch_old(origin, media_id)
        except PeerRefused as refused:
            if refused.status == 404:
                raise NotFound("Not found") from None
            raise _unavailable(f"{refused.status} {refused.errcode}") from None
        except ObjectTooLarge:
            raise TooLarge(f"Content of other servers above {self.max_bytes} bytes is not fetched") from None
        except (PeerError, BadMultipart) as error:
            raise _unavailable(str(error)) from None

    async def _fetch_authenticated(self, origin: ServerName, media_id: str) -> None:
        query = {"timeout_ms": "20000"}
        most = self.max_bytes + MAX_METADATA_BYTES
        async with self.client.stream(
            origin, endpoint(PATH, media_id), query, timeout_s=FETCH_SECONDS, max_bytes=most
        ) as answer:
            reader = MultipartReader(boundary_of(answer.headers.get("Content-Type", "")), answer.chunks())
            await reader.next_headers()
            size = 0
            async for piece in reader.content():  # the metadata, in which nothing is defined yet
                size += len(piece)
                if size > MAX_METADATA_BYTES:
                    raise PeerAnsweredBadly("the metadata is too long")
            headers = await reader.next_headers()
            if (location := headers.get("location")) is None:
                await self._keep(origin, media_id, headers, reader.content())
                return
        async with self.client.stream_url(location, timeout_s=FETCH_SECONDS, max_bytes=most) as redirected:
            lower = {name.lower(): value for name, value in redirected.headers.items()}
            lower = {"content-type": lower.get("content-type", ""), **headers}
            await self._keep(origin, media_id, lower, redirected.chunks())

    async def _fetch_old(self, origin: ServerName, media_id: str) -> None:
        path = endpoint(OLD_PATH, origin, media_id)
        async with self.client.stream(
            origin, path, {"allow_remote": "false"}, timeout_s=FETCH_SECONDS, max_bytes=self.max_bytes
        ) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            await self._keep(origin, media_id, headers, answer.chunks())

    async def _keep(
        self, origin: ServerName, media_id: str, headers: dict[str, str], chunks: AsyncIterator[bytes]
    ) -> None:
        """Store content, and then the row that names it; if another process was first, that one's counts."""
        writer = self.store.create(self.ids.token(), self.max_bytes)
        try:
            async for chunk in chunks:
                await writer.write(chunk)
            await writer.finish()
        except BaseException:
            await writer.discard()
            raise
        content = UploadedContent(
            clean_content_type(headers.get("content-type")),
            clean_filename(filename_of(headers.get("content-disposition"))),
            writer.size_bytes,
            writer.key,
            authenticated=True,
        )
        async with self.accounts.reading() as tx:
            added = await media.add_fetched(tx, origin, media_id, NOBODY, self.clock.now_ms(), content)
        if not added:
            await self.store.delete(writer.key)
        log.info("media fetched", origin=origin, bytes=writer.size_bytes)


def filename_of(disposition: str | None) -> str | None:
    """The file name that a Content-Disposition gives."""
    if not disposition:
        return None
    message = Message()
    message["Content-Disposition"] = disposition[:1000]
    return message.get_filename()


def _unavailable(reason: str) -> MatrixError:
    log.info("media not to be had", reason=reason)
    return MatrixError("The content's server cannot be asked", errcode="M_UNKNOWN", status=502)
