"""The OAuth 2.0 authorisation server: where its endpoints are, how they refuse, and its own description.

Its pages and endpoints are below a path that proxies lead to gateways already.

Spec: C-S API §OAuth 2.0 API, GET /auth_metadata; RFC 6749, RFC 8414.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.pages import MAX_FORM_BYTES, MAX_FORM_FIELDS
from tessera.config import Settings
from tessera.http.bodies import read_body
from tessera.http.errors import MatrixError, Unrecognized
from tessera.http.replies import json_reply

PREFIX = "/_synapse/client/oauth2"
AUTHORIZE_PATH = f"{PREFIX}/authorize"
TOKEN_PATH = f"{PREFIX}/token"
REVOKE_PATH = f"{PREFIX}/revoke"
REGISTER_PATH = f"{PREFIX}/register"
DEVICE_PATH = f"{PREFIX}/device"
LINK_PATH = f"{PREFIX}/link"
ACCOUNT_PATH = f"{PREFIX}/account"
SIGN_OUT_PATH = f"{ACCOUNT_PATH}/sign-out"
RESET_PATH = f"{ACCOUNT_PATH}/reset"
CLOSE_PATH = f"{ACCOUNT_PATH}/close"
SIGN_IN_PATH = f"{PREFIX}/sign-in"
SIGNED_IN_PATH = f"{PREFIX}/signed-in"
DECIDE_PATH = f"{PREFIX}/decide"

AUTHORIZATION_CODE = "authorization_code"
REFRESH_TOKEN = "refresh_token"  # noqa: S105  the name of a grant
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
GRANT_TYPES = (AUTHORIZATION_CODE, REFRESH_TOKEN, DEVICE_CODE)

CLOSE = "org.matrix.account_deactivate"
ACTIONS = ("org.matrix.devices_list", "org.matrix.device_view", "org.matrix.device_delete", CLOSE)
RESET = "org.matrix.cross_signing_reset"  # of one interactive authentication, and never by itself

# The second names of the two are what clients say that are older than Matrix 1.15.
_API_SCOPES = ("urn:matrix:client:api:*", "urn:matrix:org.matrix.msc2967.client:api:*")
_DEVICE_SCOPE = re.compile(r"urn:matrix:(?:client|org\.matrix\.msc2967\.client):device:(.*)")
_DEVICE_ID = re.compile(r"[A-Za-z0-9._~-]{10,255}")
MAX_SCOPE_LENGTH = 1_000


class OAuthError(MatrixError):
    """A refusal as OAuth has it: `error` is one of its codes. Spec: RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str, *, status: int = 400) -> None:
        super().__init__(description, status=status, headers={"Cache-Control": "no-store"})
        self.error = error
        self.body = {"error": error, "error_description": description}


@dataclass(frozen=True, slots=True)
class Scope:
    """What a client is to get: everything on behalf of a device. `text` has what was asked for and is known."""

    device_id: str
    text: str


def parse_scope(text: str | None) -> Scope:
    """A scope; tokens that mean nothing here are left out.

    Raises:
        OAuthError: invalid_scope, without the API, exactly one device, or a device's ID that can be guessed.
    """
    tokens = dict.fromkeys((text or "")[: MAX_SCOPE_LENGTH + 1].split(" "))
    if text is not None and len(text) > MAX_SCOPE_LENGTH:
        raise OAuthError("invalid_scope", "scope is too long")
    api = [token for token in tokens if token in _API_SCOPES]
    found = [match for token in tokens if (match := _DEVICE_SCOPE.fullmatch(token)) is not None]
    device_ids = {match[1] for match in found}
    if not api:
        raise OAuthError("invalid_scope", f"scope must have {_API_SCOPES[0]}")
    if len(device_ids) != 1:
        raise OAuthError("invalid_scope", "scope must have exactly one urn:matrix:client:device:<device_id>")
    (device_id,) = device_ids
    if not _DEVICE_ID.fullmatch(device_id):
        raise OAuthError("invalid_scope", "a device_id has 10 to 255 letters, digits and characters of -._~")
    return Scope(device_id, " ".join([*api, *(match[0] for match in found)]))


def network_of(address: str) -> str:
    """Whose address it is, as far as addresses tell: of IPv6 people have as many as they like, in one /64."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


async def oauth_form(request: Request) -> dict[str, str]:
    """The form that an endpoint takes.

    Raises:
        OAuthError: it is none, or a parameter is there twice. TooLarge
    """
    body = await read_body(request, MAX_FORM_BYTES)
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except ValueError:
        raise OAuthError("invalid_request", "the body is no form") from None
    if len(dict(fields)) != len(fields):
        raise OAuthError("invalid_request", "a parameter is there twice")
    return dict(fields)


def is_on(gateway: GatewayDeps) -> bool:
    """Whether the operator wants it."""
    return gateway.settings.tessera.oauth.enabled


def require_oauth(request: Request) -> GatewayDeps:
    """What the endpoints work with.

    Raises:
        Unrecognized: the operator does not want it.
    """
    gateway = gateway_of(request)
    if not is_on(gateway):
        raise Unrecognized("This server has no OAuth 2.0 API")
    return gateway


def check_address(gateway: GatewayDeps, request: Request) -> None:
    """Note something that costs a row. Raises LimitExceeded."""
    gateway.limits.check("tessera.oauth.rc_address", network_of("" if request.client is None else request.client.host))


def issuer(settings: Settings) -> str:
    """The authorisation server's name. Spec: RFC 8414 section 2."""
    return settings.client_baseurl


def server_metadata(settings: Settings) -> dict[str, Any]:
    """The authorisation server's description of itself."""
    base = settings.client_baseurl.rstrip("/")
    return {
        "issuer": issuer(settings),
        "authorization_response_iss_parameter_supported": True,
        "authorization_endpoint": base + AUTHORIZE_PATH,
        "token_endpoint": base + TOKEN_PATH,
        "revocation_endpoint": base + REVOKE_PATH,
        "registration_endpoint": base + REGISTER_PATH,
        "device_authorization_endpoint": base + DEVICE_PATH,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query", "fragment"],
        "grant_types_supported": list(GRANT_TYPES),
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "account_management_uri": base + ACCOUNT_PATH,
        "account_management_actions_supported": list(ACTIONS),
    }


async def get_auth_metadata(request: Request) -> Response:
    """Where the authorisation server is and what it can do."""
    gateway = require_oauth(request)
    return json_reply(server_metadata(gateway.settings), headers={"Cache-Control": "public, max-age=3600"})


def no_store(value: Mapping[str, Any], status: int = 200) -> Response:
    """An answer with secrets in it."""
    return json_reply(value, status, headers={"Cache-Control": "no-store", "Pragma": "no-cache"})


routes = [
    Route("/_matrix/client/v1/auth_metadata", get_auth_metadata, methods=["GET"]),
    # As it was called before Matrix 1.15.
    Route("/_matrix/client/unstable/org.matrix.msc2965/auth_metadata", get_auth_metadata, methods=["GET"]),
]
