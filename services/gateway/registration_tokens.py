"""Tokens that let people register: whether one is good, and their administration as Synapse has it.

Spec: C-S API §Token-authenticated registration.
"""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from services.gateway.administration import ADMIN_V1, AdminRequester
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.routing import ClientAddress, JsonObject, absolute_router, client_router
from tessera.http.errors import BadJson, Forbidden, InvalidParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import registration_tokens
from tessera.storage.registration_tokens import RegistrationToken

v1_router = client_router()
admin_router = absolute_router()

MAX_TOKEN_LENGTH = 64
DEFAULT_TOKEN_LENGTH = 16
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~-")
_TOKENS = f"{ADMIN_V1}/registration_tokens"
_TRIES = 3


@v1_router.get("/register/m.login.registration_token/validity")
async def registration_token_validity(token: str, gateway: GatewayDep, client_address: ClientAddress) -> Response:
    """Whether somebody could register with a token now."""
    gateway.limits.check("rc_registration_token_validity", client_address)
    if not gateway.settings.enable_registration:
        raise Forbidden("Registration has been disabled")
    now_ms = gateway.clock.now_ms()
    async with gateway.accounts.reading() as tx:
        found = await registration_tokens.find_token(tx, token, now_ms=now_ms)
    return json_reply({"valid": found is not None and found.is_valid(now_ms)})


@admin_router.get(_TOKENS)
async def list_registration_tokens(admin: AdminRequester, gateway: GatewayDep, valid: bool | None = None) -> Response:
    """All tokens, or only those that are good, or only those that are not."""
    now_ms = gateway.clock.now_ms()
    async with gateway.accounts.reading() as tx:
        tokens = await registration_tokens.list_tokens(tx, now_ms=now_ms)
    shown = [_json(token) for token in tokens if valid is None or token.is_valid(now_ms) == valid]
    return json_reply({"registration_tokens": shown})


@admin_router.post(f"{_TOKENS}/new")
async def new_registration_token(admin: AdminRequester, body: OptionalJsonObject, gateway: GatewayDep) -> Response:
    """Make a token, of the server's choice unless one is given."""
    return json_reply(_json(await add_token(gateway, body)))


@admin_router.get(f"{_TOKENS}/{{token}}")
async def get_registration_token(token: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """One token."""
    return json_reply(_json(await _get(gateway, token)))


@admin_router.put(f"{_TOKENS}/{{token}}")
async def update_registration_token(
    token: str, admin: AdminRequester, body: JsonObject, gateway: GatewayDep
) -> Response:
    """Change the bounds of a token; null takes one away."""
    await change_token(gateway, token, body)
    return json_reply(_json(await _get(gateway, token)))


@admin_router.delete(f"{_TOKENS}/{{token}}")
async def delete_registration_token(token: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """Delete a token; who is registering with it may finish."""
    async with gateway.accounts.transaction() as tx:
        known = await registration_tokens.delete_token(tx, token)
    if not known:
        raise NotFound("No such registration token")
    return json_reply({})


async def add_token(gateway: GatewayDeps, body: Mapping[str, Any]) -> RegistrationToken:
    """Make a token.

    Raises:
        InvalidParam: there is one of that name, or it cannot be one.
        BadJson
    """
    length = body.get("length", DEFAULT_TOKEN_LENGTH)
    if isinstance(length, bool) or not isinstance(length, int):
        raise BadJson("length must be an integer")
    if not 1 <= length <= MAX_TOKEN_LENGTH:
        raise InvalidParam(f"length must be 1 to {MAX_TOKEN_LENGTH}")
    wished = body.get("token")
    if wished is not None and not isinstance(wished, str):
        raise BadJson("token must be a string")
    if wished is not None and not (0 < len(wished) <= MAX_TOKEN_LENGTH and _LETTERS.issuperset(wished)):
        raise InvalidParam(f"token must be 1 to {MAX_TOKEN_LENGTH} letters of A-Z, a-z, 0-9 and ._~-")
    uses_allowed, expires_ts = _bounds(gateway, body, None, None)
    for _ in range(_TRIES if wished is None else 1):
        token = wished or gateway.ids.letters(length)
        async with gateway.accounts.transaction() as tx:
            if await registration_tokens.add_token(tx, token, uses_allowed=uses_allowed, expires_ts=expires_ts):
                return RegistrationToken(token, uses_allowed, 0, 0, expires_ts)
    raise InvalidParam("There is such a token already")


async def change_token(gateway: GatewayDeps, token: str, body: Mapping[str, Any]) -> None:
    """Change those bounds that the body names. Raises NotFound, BadJson or InvalidParam."""
    async with gateway.accounts.transaction() as tx:
        await registration_tokens.lock_token(tx, token)
        found = await registration_tokens.find_token(tx, token, now_ms=gateway.clock.now_ms())
        if found is None:
            raise NotFound("No such registration token")
        uses_allowed, expires_ts = _bounds(gateway, body, found.uses_allowed, found.expires_ts)
        await registration_tokens.set_token(tx, token, uses_allowed=uses_allowed, expires_ts=expires_ts)


async def _get(gateway: GatewayDeps, token: str) -> RegistrationToken:
    async with gateway.accounts.reading() as tx:
        found = await registration_tokens.find_token(tx, token, now_ms=gateway.clock.now_ms())
    if found is None:
        raise NotFound("No such registration token")
    return found


def _bounds(
    gateway: GatewayDeps, body: Mapping[str, Any], uses_allowed: int | None, expires_ts: int | None
) -> tuple[int | None, int | None]:
    """uses_allowed and expiry_time of a body, each with what it is without."""
    uses = _count(body, "uses_allowed", uses_allowed, 2**31 - 1)
    expiry = _count(body, "expiry_time", expires_ts, 2**53 - 1)
    if "expiry_time" in body and expiry is not None and expiry < gateway.clock.now_ms():
        raise InvalidParam("expiry_time must not be in the past")
    return uses, expiry


def _count(body: Mapping[str, Any], name: str, default: int | None, most: int) -> int | None:
    value = body.get(name, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise BadJson(f"{name} must be an integer or null")
    if value is not None and not 0 <= value <= most:
        raise InvalidParam(f"{name} is out of range")
    return value


def _json(token: RegistrationToken) -> dict[str, object]:
    return {
        "token": token.token,
        "uses_allowed": token.uses_allowed,
        "pending": token.pending,
        "completed": token.completed,
        "expiry_time": token.expires_ts,
    }
