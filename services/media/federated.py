"""Our media, for other servers. Spec: S-S API §Content Repository."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.media.content import get_content
from services.media.dependencies import MediaDeps, media_of
from services.media.disk_store import StoredObject
from services.media.multipart import multipart_end, part_head
from services.media.response_headers import content_headers
from services.media.routes import find_thumbnail, thumbnail_request_of, wait_ms_of
from tessera.federation.authentication import PeerAuthenticator
from tessera.http.errors import NotFound

PREFIX = "/_matrix/federation/v1/media"


class MultipartContent(Response):
    """No metadata, and an object or bytes that are at hand."""

    def __init__(self, boundary: str, content_type: str, filename: str | None, content: bytes | StoredObject) -> None:
        self.status_code = 200
        self.background = None
        self._content = content
        size = len(content) if isinstance(content, bytes) else content.size_bytes
        given = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in content_headers(content_type, filename, size)
        }
        named = {name: given[name] for name in given if name.lower() in ("content-type", "content-disposition")}
        self._head = part_head(boundary, {"Content-Type": "application/json"}) + b"{}" + part_head(boundary, named)
        self._end = multipart_end(boundary)
        length = len(self._head) + size + len(self._end)
        self.raw_headers = [
            (b"content-type", f"multipart/mixed; boundary={boundary}".encode()),
            (b"content-length", str(length).encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it in pieces."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._head, "more_body": True})
            if isinstance(self._content, bytes):
                await send({"type": "http.response.body", "body": self._content, "more_body": True})
            else:
                async for chunk in self._content.chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": self._end})
        finally:
            if not isinstance(self._content, bytes):
                self._content.close()


async def download(request: Request) -> Response:
    """Content that was uploaded here."""
    media, peers = media_of(request), _peers_of(request)
    async with peers.admitted(request):
        content = await get_content(
            media, media.server_name, request.path_params["media_id"], wait_ms_of(request), authenticated=True
        )
        stored = await media.store.find(content.object_key)
    if stored is None:
        raise NotFound("Not found")
    return MultipartContent(_boundary(media), content.content_type, content.filename, stored)


async def thumbnail(request: Request) -> Response:
    """A thumbnail of content that was uploaded here."""
    media, peers = media_of(request), _peers_of(request)
    async with peers.admitted(request):
        wanted = thumbnail_request_of(request)
        content = await get_content(
            media, media.server_name, request.path_params["media_id"], wait_ms_of(request), authenticated=True
        )
        made = await find_thumbnail(media, content, wanted)
    extension = made.content_type.rpartition("/")[2]
    return MultipartContent(_boundary(media), made.content_type, f"thumbnail.{extension}", made.content)


routes = [
    Route(f"{PREFIX}/download/{{media_id}}", download, methods=["GET"]),
    Route(f"{PREFIX}/thumbnail/{{media_id}}", thumbnail, methods=["GET"]),
]


def _peers_of(request: Request) -> PeerAuthenticator:
    peers: PeerAuthenticator = request.app.state.peers
    return peers


def _boundary(media: MediaDeps) -> str:
    return f"tessera-{media.ids.letters(24)}"
