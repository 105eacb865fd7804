"""Registration by whoever knows the shared secret, as Synapse's register_new_matrix_user does it.

GET answers a nonce; POST registers with an HMAC over nonce, name, password and admin flag.
"""

import hmac
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.registration import (
    SessionRequest,
    add_account,
    check_new_password,
    optional_flag,
    optional_text,
    parse_username,
    registered_reply,
    require_free_name,
)
from services.gateway.routing import json_object_of
from tessera.http.errors import Forbidden, InvalidParam, MatrixError, MissingParam
from tessera.http.replies import json_reply
from tessera.storage import users

NONCE_LIFETIME_MS = 60_000
_USER_TYPES = (None, "support", "bot")


async def get_nonce(request: Request) -> Response:
    """A nonce for one registration within a minute."""
    gateway = gateway_of(request)
    _require_secret(gateway)
    now_ms = gateway.clock.now_ms()
    nonce = gateway.ids.token(32)
    async with gateway.accounts.reading() as tx:
        await users.add_registration_nonce(tx, nonce, expires_ts=now_ms + NONCE_LIFETIME_MS, now_ms=now_ms)
    return json_reply({"nonce": nonce})


async def post_registration(request: Request) -> Response:
    """Register an account, an administrator's if asked for."""
    return json_reply(await register_by_secret(gateway_of(request), await json_object_of(request)))


routes = [
    Route("/_synapse/admin/v1/register", get_nonce, methods=["GET"]),
    Route("/_synapse/admin/v1/register", post_registration, methods=["POST"]),
]


async def register_by_secret(gateway: GatewayDeps, body: Mapping[str, Any]) -> dict[str, Any]:
    """Check nonce and HMAC, then register; answers like POST /register.

    Raises:
        MatrixError: the nonce is unknown, used or older than a minute (400).
        Forbidden: the HMAC is wrong.
        InvalidUsername, UserInUse, InvalidParam, MissingParam, BadJson: as in any registration.
    """
    secret = _require_secret(gateway)
    nonce, username, password, mac = (_required(body, name) for name in ("nonce", "username", "password", "mac"))
    is_admin = optional_flag(body, "admin")
    user_type = optional_text(body, "user_type")
    if user_type not in _USER_TYPES:
        raise InvalidParam("user_type must be support or bot")
    if "\0" in username or "\0" in password:
        raise InvalidParam("username and password must not contain NUL")
    async with gateway.accounts.reading() as tx:
        known = await users.take_registration_nonce(tx, nonce, now_ms=gateway.clock.now_ms())
    if not known:
        raise MatrixError("unrecognised nonce", errcode="M_UNKNOWN", status=400)
    wanted = registration_mac(secret, nonce, username, password, is_admin=is_admin, user_type=user_type)
    if not hmac.compare_digest(wanted.encode(), mac.lower().encode("utf-8", "surrogatepass")):
        raise Forbidden("HMAC incorrect")
    user_id = parse_username(username, gateway.server_name)
    await require_free_name(gateway, user_id)
    password_hash = await gateway.passwords.hash(check_new_password(password))
    await add_account(
        gateway, user_id, password_hash, displayname=optional_text(body, "displayname") or None, is_admin=is_admin
    )
    session = None if optional_flag(body, "inhibit_login") else SessionRequest.parse(body)
    return await registered_reply(gateway, user_id, session)


def registration_mac(
    secret: str, nonce: str, username: str, password: str, *, is_admin: bool, user_type: str | None = None
) -> str:
    """The hexadecimal HMAC-SHA1 that proves the secret: the parts in order, NUL between them."""
    parts = [nonce, username, password, "admin" if is_admin else "notadmin"]
    if user_type is not None:
        parts.append(user_type)
    message = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hmac.new(secret.encode(), message, "sha1").hexdigest()


def _require_secret(gateway: GatewayDeps) -> str:
    secret = gateway.settings.registration_shared_secret
    if secret is None:
        raise MatrixError("Shared secret registration is not enabled", errcode="M_UNKNOWN", status=400)
    return secret.get_secret_value()


def _required(body: Mapping[str, Any], name: str) -> str:
    value = optional_text(body, name)
    if not value:
        raise MissingParam(f"{name} is missing")
    return value
