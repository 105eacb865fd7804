"""Clients register themselves: public ones, that prove who they are by where their users are sent back to.

Spec: C-S API §Client registration, §Redirect URI validation; RFC 7591, RFC 8252 section 7.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.dependencies import GatewayDeps
from services.gateway.oauth_server import (
    AUTHORIZATION_CODE,
    GRANT_TYPES,
    REGISTER_PATH,
    OAuthError,
    check_address,
    no_store,
    require_oauth,
)
from tessera.http.bodies import read_json_object
from tessera.http.errors import Unavailable
from tessera.storage import oauth_clients

MAX_BODY_BYTES = 8_192
MAX_CLIENTS = 50_000
MAX_REDIRECTS = 10
MAX_URL_LENGTH = 512
MAX_NAME_LENGTH = 100

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*(?::[0-9]+)?")
# What a URL may be made of: nothing that a browser reads otherwise than this server, or that ends a policy or header.
_URL = re.compile(r"[A-Za-z0-9%:/?#\[\]@!$&'()*+,;=~._-]+")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)")


async def register_client(request: Request) -> Response:
    """A client's ID for its metadata; equal ones have the same."""
    gateway = require_oauth(request)
    check_address(gateway, request)
    metadata = parse_metadata(await read_json_object(request, MAX_BODY_BYTES))
    client_id = await _add(gateway, metadata, gateway.clock.now_ms() - oauth_clients.UNUSED_MS)
    if client_id is None:  # it is full: then of those that were used least lately, whenever that was
        client_id = await _add(gateway, metadata, gateway.clock.now_ms())
    if client_id is None:
        raise Unavailable("Too many clients are registered")
    return no_store({"client_id": client_id, **metadata}, 201)


def parse_metadata(body: Mapping[str, Any]) -> dict[str, Any]:
    """What is registered of a client's metadata: what is understood, with defaults.

    Raises:
        OAuthError: invalid_client_metadata or invalid_redirect_uri.
    """
    client_uri, home = _web_url(body.get("client_uri"), "client_uri")
    metadata: dict[str, Any] = {"client_uri": client_uri}
    if (name := body.get("client_name")) is not None:
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
            raise _unfit("client_name", f"must be a text of {MAX_NAME_LENGTH} characters at most")
        metadata["client_name"] = name
    for key in ("logo_uri", "tos_uri", "policy_uri"):
        if body.get(key) is not None:
            url, parts = _web_url(body[key], key)
            if not _is_below(parts, home):
                raise _unfit(key, "must be on the host of client_uri or below it")
            metadata[key] = url
    metadata["application_type"] = body.get("application_type", "web")
    if metadata["application_type"] not in ("web", "native"):
        raise _unfit("application_type", "must be web or native")
    metadata["grant_types"] = _known(body, "grant_types", GRANT_TYPES, AUTHORIZATION_CODE)
    metadata["response_types"] = _known(body, "response_types", ("code",), "code")
    metadata["token_endpoint_auth_method"] = "none"  # noqa: S105  the name of a method
    redirects = _texts(body, "redirect_uris")
    if len(redirects) > MAX_REDIRECTS:
        raise _unfit("redirect_uris", f"has more than {MAX_REDIRECTS} entries")
    if not redirects and AUTHORIZATION_CODE in metadata["grant_types"]:
        raise OAuthError("invalid_redirect_uri", "redirect_uris is missing")
    for url in redirects:
        _check_redirect(url, home, metadata["application_type"])
    metadata["redirect_uris"] = redirects
    return metadata


async def _add(gateway: GatewayDeps, metadata: Mapping[str, Any], forgotten_before_ms: int) -> str | None:
    now_ms = gateway.clock.now_ms()
    async with gateway.accounts.transaction() as tx:
        await oauth_clients.forget_unused(tx, forgotten_before_ms, now_ms)
    async with gateway.accounts.transaction() as tx:
        return await oauth_clients.add_client(tx, gateway.ids.letters(24), metadata, now_ms=now_ms, most=MAX_CLIENTS)


async def find_client(gateway: GatewayDeps, client_id: str | None) -> dict[str, Any] | None:
    """The metadata of a client; None if there is no such one."""
    if not client_id or not client_id.isalpha() or len(client_id) > MAX_NAME_LENGTH:
        return None
    async with gateway.accounts.reading() as tx:
        return await oauth_clients.find_client(tx, client_id)


def is_registered(url: str, client: Mapping[str, Any]) -> bool:
    """Whether a client may have people sent to a URL: one of its own to the letter, on this machine on any port."""
    return url in client["redirect_uris"] or _without_port(url) in client["redirect_uris"]


def form_source(url: str) -> str:
    """A registered redirect URI as a source in a Content-Security-Policy.

    Hosts are left out: an app may send browsers on from there, and policies know no IPv6 addresses.
    """
    return f"{urlsplit(url).scheme}:"


def _without_port(url: str) -> str | None:
    """A URL of this machine without its port; None for any other."""
    parts = _split(url)
    if parts is None or parts.scheme != "http" or parts.hostname not in _LOOPBACK or parts.port is None:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if parts.netloc != f"{host}:{parts.port}":
        return None
    return f"http://{host}{url[len('http://') + len(parts.netloc) :]}"


def _check_redirect(url: str, home: SplitResult, application_type: str) -> None:
    parts = _split(url)
    if parts is None or "#" in url:
        raise OAuthError("invalid_redirect_uri", "a redirect URI must be a URL without a fragment")
    if parts.scheme == "https":
        if not _is_web(parts) or not _is_below(parts, home):
            raise OAuthError("invalid_redirect_uri", "a redirect URI must be on the host of client_uri or below it")
        return
    if application_type != "native":
        raise OAuthError("invalid_redirect_uri", "a web client's redirect URI must be https")
    if parts.scheme == "http":
        if parts.hostname not in _LOOPBACK or parts.netloc not in ("localhost", "127.0.0.1", "[::1]"):
            raise OAuthError("invalid_redirect_uri", "http is for localhost, 127.0.0.1 and [::1], without a port")
        return
    own = ".".join(reversed((home.hostname or "").split(".")))
    # With a dot: what has none may be a scheme of the operating system. Spec: RFC 8252 section 7.1.
    if "." not in own or not f"{parts.scheme}.".startswith(f"{own}.") or url[len(parts.scheme) + 1 :].startswith("//"):
        raise OAuthError("invalid_redirect_uri", f"an app's own scheme must begin with {own}, and have no host")


def _web_url(value: Any, key: str) -> tuple[str, SplitResult]:
    parts = _split(value) if isinstance(value, str) else None
    if parts is None or parts.scheme != "https" or not _is_web(parts):
        raise _unfit(key, "must be an https URL")
    return value, parts


def _split(url: str) -> SplitResult | None:
    """A URL's parts; None unless it is one that everybody reads alike."""
    if len(url) > MAX_URL_LENGTH or not _URL.fullmatch(url) or not _SCHEME.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _is_web(parts: SplitResult) -> bool:
    return _HOST.fullmatch(parts.netloc) is not None


def _is_below(parts: SplitResult, home: SplitResult) -> bool:
    return f".{parts.hostname}".endswith(f".{home.hostname}")


def _texts(body: Mapping[str, Any], key: str) -> list[str]:
    value = body.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _unfit(key, "must be a list of texts")
    return list(dict.fromkeys(value))


def _known(body: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> list[str]:
    if body.get(key) is None:
        return [default]
    given = _texts(body, key)
    return [one for one in known if one in given]


def _unfit(key: str, reason: str) -> OAuthError:
    return OAuthError("invalid_client_metadata", f"{key} {reason}")


routes = [Route(REGISTER_PATH, register_client, methods=["POST"])]
