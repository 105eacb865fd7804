"""The content repository over HTTP: upload, reserve, download, thumbnail.

Bytes stream both ways in bounded pieces; no request holds a whole file in memory.

Spec: C-S API §Content repository.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from services.media.content import DEFAULT_WAIT_MS, Upload, get_content, reserve, upload, upload_to
from services.media.dependencies import MediaDeps, media_of
from services.media.disk_store import StoredObject
from services.media.response_headers import clean_filename, content_headers
from services.media.thumbnailer import ServedThumbnail
from services.media.thumbnails import ImageTooLarge, NoThumbnail, ThumbnailRequest
from tessera.http.authentication import authenticate
from tessera.http.bodies import declared_length, stream_body
from tessera.http.deadlines import deadline
from tessera.http.errors import InvalidParam, MatrixError, MissingParam, NotFound, TooLarge, Unrecognized
from tessera.http.replies import json_bytes_reply, json_reply
from tessera.storage.media import UploadedContent

CLIENT = "/_matrix/client/v1/media"
LEGACY = tuple(f"/_matrix/media/{version}" for version in ("v3", "r0", "v1"))
MAX_DIGITS = 9

Handler = Callable[[Request], Awaitable[Response]]


class ContentResponse(Response):
    """Streams an object, or sends bytes that are at hand, under the headers that keep browsers safe."""

    def __init__(self, content_type: str, filename: str | None, content: bytes | StoredObject) -> None:
        self.status_code = 200
        self.background = None
        self._content = content
        size_bytes = len(content) if isinstance(content, bytes) else content.size_bytes
        self.raw_headers = content_headers(content_type, filename, size_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD" and not isinstance(self._content, bytes):
                async for chunk in self._content.chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            last = self._content if isinstance(self._content, bytes) and scope["method"] != "HEAD" else b""
            await send({"type": "http.response.body", "body": last})
        finally:
            if not isinstance(self._content, bytes):
                self._content.close()


@deadline(None)
async def upload_content(request: Request) -> Response:
    """Store a body under a new media ID."""
    media = media_of(request)
    requester = await authenticate(request)
    media_id = await upload(media, requester.user_id, _upload_of(request))
    return json_reply({"content_uri": f"mxc://{media.server_name}/{media_id}"})


async def create_content(request: Request) -> Response:
    """Reserve a media ID."""
    media = media_of(request)
    requester = await authenticate(request)
    media.rates.check("rc_media_create", requester.user_id)
    media_id, expires_ms = await reserve(media, requester.user_id)
    return json_reply({"content_uri": f"mxc://{media.server_name}/{media_id}", "unused_expires_at": expires_ms})


@deadline(None)
async def upload_content_to_mxc(request: Request) -> Response:
    """Store a body under a reserved media ID."""
    requester = await authenticate(request)
    path = request.path_params
    await upload_to(media_of(request), requester.user_id, path["server_name"], path["media_id"], _upload_of(request))
    return json_reply({})


async def get_config_authed(request: Request) -> Response:
    """The limits of the repository."""
    await authenticate(request)
    return json_reply({"m.upload.size": media_of(request).limits.max_upload_bytes})


async def get_content_authed(request: Request) -> Response:
    """Download with an access token."""
    await authenticate(request)
    return await _download(request, authenticated=True)


async def get_content_unauthenticated(request: Request) -> Response:
    """Download on the old paths: only what was uploaded before they were frozen."""
    return await _download(request, authenticated=False)


async def get_content_thumbnail_authed(request: Request) -> Response:
    """A thumbnail with an access token."""
    await authenticate(request)
    return await _thumbnail(request, authenticated=True)


async def get_content_thumbnail_unauthenticated(request: Request) -> Response:
    """A thumbnail on the old paths."""
    return await _thumbnail(request, authenticated=False)


async def get_url_preview(request: Request) -> Response:
    """What the page behind a link says of itself."""
    media = media_of(request)
    if media.previewer is None:
        raise Unrecognized
    requester = await authenticate(request)
    url = request.query_params.get("url")
    if url is None:
        raise MissingParam("url is missing")
    if (ts := request.query_params.get("ts")) is not None:
        _natural(ts, "ts")  # what is kept is what is newest, which the specification allows
    return json_bytes_reply(await media.previewer.get(media, requester.user_id, url))


async def _download(request: Request, *, authenticated: bool) -> Response:
    media = media_of(request)
    content = await _content_of(media, request, authenticated=authenticated)
    stored = await media.store.find(content.object_key)
    if stored is None:
        raise NotFound("Not found")
    filename = clean_filename(request.path_params.get("filename")) or content.filename
    return ContentResponse(content.content_type, filename, stored)


async def _thumbnail(request: Request, *, authenticated: bool) -> Response:
    media = media_of(request)
    wanted = thumbnail_request_of(request)
    content = await _content_of(media, request, authenticated=authenticated)
    thumbnail = await find_thumbnail(media, content, wanted)
    extension = thumbnail.content_type.rpartition("/")[2]
    return ContentResponse(thumbnail.content_type, f"thumbnail.{extension}", thumbnail.content)


async def find_thumbnail(media: MediaDeps, content: UploadedContent, wanted: ThumbnailRequest) -> ServedThumbnail:
    """A thumbnail of stored content.

    Raises:
        MatrixError: of this there are none. TooLarge, NotFound
    """
    try:
        return await media.thumbnailer.get(content.object_key, wanted)
    except NoThumbnail:
        raise MatrixError(
            "Cannot generate thumbnails for the requested content", errcode="M_UNKNOWN", status=400
        ) from None
    except ImageTooLarge:
        raise TooLarge("Content is too large to thumbnail") from None
    except FileNotFoundError:
        raise NotFound("Not found") from None


def thumbnail_request_of(request: Request) -> ThumbnailRequest:
    """The query parameters of a thumbnail.

    Raises:
        MissingParam, InvalidParam
    """
    query = request.query_params
    width, height = _positive(query.get("width"), "width"), _positive(query.get("height"), "height")
    method = query.get("method", "scale")
    animated = query.get("animated", "false")
    if animated not in ("true", "false"):
        raise InvalidParam("animated must be true or false")
    if method == "crop":
        return ThumbnailRequest(width, height, "crop", animated == "true")
    if method == "scale":
        return ThumbnailRequest(width, height, "scale", animated == "true")
    raise InvalidParam("method must be crop or scale")


async def _content_of(media: MediaDeps, request: Request, *, authenticated: bool) -> UploadedContent:
    path = request.path_params
    return await get_content(
        media,
        path["server_name"],
        path["media_id"],
        wait_ms_of(request),
        authenticated=authenticated,
        allow_remote=request.query_params.get("allow_remote", "true") != "false",
    )


def wait_ms_of(request: Request) -> int:
    """How long content that is not there yet is waited for. Raises InvalidParam."""
    given = request.query_params.get("timeout_ms")
    return DEFAULT_WAIT_MS if given is None else _natural(given, "timeout_ms")


def _upload_of(request: Request) -> Upload:
    return Upload(
        request.headers.get("content-type"),
        request.query_params.get("filename"),
        declared_length(request),
        stream_body(request),
    )


def _natural(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidParam(f"{name} must be an integer that is not negative")
    return int(text[:20])


def _positive(text: str | None, name: str) -> int:
    if text is None:
        raise MissingParam(f"{name} is missing")
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS and int(text) > 0):
        raise InvalidParam(f"{name} must be a positive integer")
    return int(text)


def media_routes() -> list[BaseRoute]:
    """All routes of the content repository, for the media service and for the one that runs everything."""
    routes: list[BaseRoute] = [Route("/_matrix/media/v1/create", create_content, methods=["POST"])]
    for prefix in LEGACY:
        routes += [
            Route(f"{prefix}/upload", upload_content, methods=["POST"]),
            Route(f"{prefix}/upload/{{server_name}}/{{media_id}}", upload_content_to_mxc, methods=["PUT"]),
            *_reading_routes(prefix, get_content_unauthenticated, get_content_thumbnail_unauthenticated),
        ]
    return routes + _reading_routes(CLIENT, get_content_authed, get_content_thumbnail_authed)


def _reading_routes(prefix: str, download: Handler, thumbnail: Handler) -> list[BaseRoute]:
    name = f"{prefix}/download/{{server_name}}/{{media_id}}"
    return [
        Route(f"{prefix}/config", get_config_authed, methods=["GET"]),
        Route(f"{prefix}/preview_url", get_url_preview, methods=["GET"]),
        Route(name, download, methods=["GET"]),
        Route(f"{name}/{{filename:path}}", download, methods=["GET"]),
        Route(f"{prefix}/thumbnail/{{server_name}}/{{media_id}}", thumbnail, methods=["GET"]),
    ]
