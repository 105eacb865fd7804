"""A meeting place for two devices, of which one logs the other in: each leaves small texts there for the other.

Neither has to be logged in: the ID is the secret, what they say is encrypted between them, and nothing of it lasts
longer than a minute. All processes of a gateway see the same, since it lies in the account store.

Spec: MSC4108 (sign in with QR codes), its version of 2024 with ETags.
"""

import re
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.dependencies import gateway_of
from tessera.http.bodies import read_body
from tessera.http.errors import InvalidParam, LimitExceeded, MatrixError, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import rendezvous
from tessera.storage.rendezvous import LIVES_SECONDS, Rendezvous

MAX_CONTENT_BYTES = 4_096
MOST = 1_000  # of the whole server
ID_LETTERS = 32
_PATH = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
_ETAG = re.compile(r'(?:W/)?"?(\d{1,18})"?')
_GONE = "The rendezvous is over"


async def create_rendezvous(request: Request) -> Response:
    """Open a meeting place with a first text in it."""
    gateway = gateway_of(request)
    # A step of a login, though nobody is known yet.
    gateway.limits.check("rc_login.address", "" if request.client is None else request.client.host)
    content = await _text_of(request)
    rendezvous_id = gateway.ids.letters(ID_LETTERS)
    async with gateway.accounts.transaction() as tx:
        made = await rendezvous.add_rendezvous(tx, rendezvous_id, content, most=MOST)
    if made is None:
        raise LimitExceeded(LIVES_SECONDS * 1_000)
    base = gateway.settings.public_baseurl or f"https://{gateway.server_name}/"
    return json_reply({"url": f"{str(base).rstrip('/')}{_PATH}/{rendezvous_id}"}, 201, headers=_headers(made))


async def get_rendezvous(request: Request) -> Response:
    """What lies there; 304 while it is what the other one knows already."""
    async with gateway_of(request).accounts.reading() as tx:
        found = await rendezvous.find_rendezvous(tx, request.path_params["rendezvous_id"])
    if found is None:
        raise NotFound(_GONE)
    known = request.headers.get("if-none-match")
    if known is not None and _version_of(known) == found.version:
        return Response(status_code=304, headers=_headers(found))
    return Response(found.content, media_type="text/plain", headers=_headers(found))


async def update_rendezvous(request: Request) -> Response:
    """Leave another text, unless the other device was quicker."""
    gateway = gateway_of(request)
    expected = request.headers.get("if-match")
    if expected is None:
        raise MissingParam("the header If-Match is missing")
    version, content = _version_of(expected), await _text_of(request)
    rendezvous_id = request.path_params["rendezvous_id"]
    async with gateway.accounts.transaction() as tx:
        changed = await rendezvous.replace_content(tx, rendezvous_id, version, content)
        found = None if changed is not None else await rendezvous.find_rendezvous(tx, rendezvous_id)
    if changed is not None:
        return Response(status_code=202, headers=_headers(changed))
    if found is None:
        raise NotFound(_GONE)
    fields = {"org.matrix.msc4108.errcode": "M_CONCURRENT_WRITE"}
    error = MatrixError("The other device was quicker", errcode="M_UNKNOWN", status=412, fields=fields)
    return json_reply(error.body, error.status, headers=_headers(found))


async def delete_rendezvous(request: Request) -> Response:
    """End it."""
    async with gateway_of(request).accounts.transaction() as tx:
        if not await rendezvous.delete_rendezvous(tx, request.path_params["rendezvous_id"]):
            raise NotFound(_GONE)
    return Response(status_code=204)


# Plain routes: texts, headers and status codes, nothing of which is JSON.
routes = [
    Route(_PATH, create_rendezvous, methods=["POST"]),
    Route(_PATH + "/{rendezvous_id}", get_rendezvous, methods=["GET"]),
    Route(_PATH + "/{rendezvous_id}", update_rendezvous, methods=["PUT"]),
    Route(_PATH + "/{rendezvous_id}", delete_rendezvous, methods=["DELETE"]),
]


async def _text_of(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "text/plain":
        raise InvalidParam("Content-Type must be text/plain")
    return await read_body(request, MAX_CONTENT_BYTES)


def _version_of(etag: str) -> int:
    matched = _ETAG.fullmatch(etag.strip())
    return 0 if matched is None else int(matched[1])  # what is not ours is the ETag of nothing


def _headers(found: Rendezvous) -> dict[str, str]:
    return {
        "ETag": f'"{found.version}"',
        "Expires": format_datetime(found.expires_at, usegmt=True),
        "Last-Modified": format_datetime(found.changed_at, usegmt=True),
        "Cache-Control": "no-store",
        "Pragma": "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
