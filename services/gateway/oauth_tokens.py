"""Tokens for what people granted, new ones for old ones, and their end.

Spec: C-S API §Grant types, §Token revocation; RFC 6749 sections 4.1 and 6, RFC 7009, RFC 7636, RFC 8628.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import UserId
from services.gateway.dependencies import GatewayDeps
from services.gateway.login import require_free_device_id
from services.gateway.logout import end_sessions
from services.gateway.oauth_clients import find_client
from services.gateway.oauth_server import (
    AUTHORIZATION_CODE,
    DEVICE_CODE,
    DEVICE_PATH,
    LINK_PATH,
    REFRESH_TOKEN,
    REVOKE_PATH,
    TOKEN_PATH,
    OAuthError,
    check_address,
    no_store,
    oauth_form,
    parse_scope,
    require_oauth,
)
from services.gateway.refresh import exchange_refresh_token
from services.gateway.sessions import IssuedTokens, TokenLifetimes, Wakes, start_session
from services.gateway.sso_provider import code_challenge
from tessera.http.errors import Forbidden, LimitExceeded, Unavailable, UnknownToken, UserLocked
from tessera.storage import access_tokens, oauth_clients, oauth_grants, users
from tessera.storage.database import Transaction
from tessera.storage.oauth_grants import Code, DeviceGrant

DEFAULT_ACCESS_MS = 300_000  # the specification wants them to be short-lived, whatever the legacy API gives
DEVICE_GRANT_MS = 20 * 60 * 1000
MAX_DEVICE_GRANTS = 20_000  # under way at once, in the whole server
POLL_SECONDS = 5
USER_CODE_LENGTH = 8
MAX_TOKEN_LENGTH = 1_000
_USER_CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no words; 34 bits, for twenty minutes
_TRIES = 5
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


async def issue_tokens(request: Request) -> Response:
    """Tokens for a code, for a device's code, or for a refresh token."""
    gateway = require_oauth(request)
    form = await oauth_form(request)
    grant, client_id = form.get("grant_type"), form.get("client_id", "")
    if not grant:
        raise OAuthError("invalid_request", "grant_type is missing")
    if grant not in (AUTHORIZATION_CODE, DEVICE_CODE, REFRESH_TOKEN):
        raise OAuthError("unsupported_grant_type", "this server has no such grant")
    client = await find_client(gateway, client_id)
    if client is None:
        raise OAuthError("invalid_client", "client_id is missing or unknown", status=401)
    if grant == REFRESH_TOKEN:
        return no_store(await _by_refresh_token(gateway, form, client_id))
    if grant not in client["grant_types"]:
        raise OAuthError("unauthorized_client", "the client has not registered this grant")
    address = "" if request.client is None else request.client.host
    if grant == DEVICE_CODE:
        return no_store(await _by_device_code(gateway, form, client_id, client, address))
    return no_store(await _by_code(gateway, form, client_id, client, address))


async def revoke_token(request: Request) -> Response:
    """End the session of a token, whoever has it: a device of the legacy API is logged out too."""
    gateway = require_oauth(request)
    token = _required(await oauth_form(request), "token")
    async with gateway.accounts.transaction() as tx:
        by_access = (await access_tokens.find_tokens(tx, [token])).get(token)
        by_refresh = None if by_access is not None else await access_tokens.find_refresh_token(tx, token)
    found = by_access or by_refresh
    if found is not None:
        await end_sessions(gateway, found.user_id, [found.device_id])
    return no_store({})


async def begin_device_grant(request: Request) -> Response:
    """Codes for a device without a browser: one for itself, and one that a person types in elsewhere."""
    gateway = require_oauth(request)
    check_address(gateway, request)
    form = await oauth_form(request)
    client_id = form.get("client_id", "")
    client = await find_client(gateway, client_id)
    if client is None:
        raise OAuthError("invalid_client", "client_id is missing or unknown", status=401)
    if DEVICE_CODE not in client["grant_types"]:
        raise OAuthError("unauthorized_client", "the client has not registered this grant")
    scope = parse_scope(form.get("scope"))
    device_code, now_ms = f"tsd_{gateway.ids.token(32)}", gateway.clock.now_ms()
    grant = DeviceGrant(client_id, scope.device_id, scope.text)
    for _ in range(_TRIES):
        user_code = _user_code(gateway)
        async with gateway.accounts.transaction() as tx:
            await oauth_clients.note_use(tx, client_id, now_ms)
            if await oauth_grants.add_device_grant(
                tx,
                device_code,
                user_code,
                grant,
                expires_ts=now_ms + DEVICE_GRANT_MS,
                now_ms=now_ms,
                most=MAX_DEVICE_GRANTS,
            ):
                break
    else:
        raise Unavailable("Too many devices are waiting to be linked")
    shown = shown_user_code(user_code)
    link = gateway.settings.client_baseurl.rstrip("/") + LINK_PATH
    return no_store(
        {
            "device_code": device_code,
            "user_code": shown,
            "verification_uri": link,
            "verification_uri_complete": f"{link}?user_code={shown}",
            "expires_in": DEVICE_GRANT_MS // 1000,
            "interval": POLL_SECONDS,
        }
    )


def shown_user_code(user_code: str) -> str:
    """A user code as people read it: WDJB-MJHT."""
    half = USER_CODE_LENGTH // 2
    return f"{user_code[:half]}-{user_code[half:]}"


def parse_user_code(text: str) -> str | None:
    """A user code as somebody typed it; None if it can be none."""
    code = "".join(letter for letter in text[:100].upper() if letter.isalnum())
    return code if len(code) == USER_CODE_LENGTH and set(code) <= set(_USER_CODE_LETTERS) else None


async def _by_code(
    gateway: GatewayDeps, form: Mapping[str, str], client_id: str, client: Mapping[str, Any], address: str
) -> dict[str, Any]:
    code, verifier = _required(form, "code"), _required(form, "code_verifier")
    redirect_uri = _required(form, "redirect_uri")
    async with gateway.accounts.transaction() as tx:
        await _lock_granter(tx, await oauth_grants.find_code_user(tx, code))
        granted = await oauth_grants.use_code(tx, code, gateway.clock.now_ms())
        refusal = _refusal(granted, client_id, redirect_uri, verifier)
        # A refused code is used up all the same.
        if refusal is None and granted is not None:
            grant = DeviceGrant(client_id, granted.device_id, granted.scope, granted.user_id)
            issued, wakes = await _start(tx, gateway, grant, client, address)
    if refusal is None and granted is not None:
        return await _started(gateway, granted.user_id, granted.device_id, granted.scope, issued, wakes)
    if granted is not None and granted.was_used:
        # Somebody else has it too: what was given for it is taken back.
        await _end_session_of(gateway, granted)
    raise OAuthError("invalid_grant", refusal or "")


def _refusal(granted: Code | None, client_id: str, redirect_uri: str, verifier: str) -> str | None:
    """Why there is nothing for a code."""
    if granted is None:
        return "the code is unknown or has ended"
    if granted.was_used:
        return "the code was used already"
    if granted.client_id != client_id or granted.redirect_uri != redirect_uri:
        return "the code is another client's, or for another redirect_uri"
    challenge = code_challenge(verifier) if _VERIFIER.fullmatch(verifier) else ""
    return None if secrets.compare_digest(challenge, granted.code_challenge) else "code_verifier does not fit"


async def _by_device_code(
    gateway: GatewayDeps, form: Mapping[str, str], client_id: str, client: Mapping[str, Any], address: str
) -> dict[str, Any]:
    device_code, now_ms = _required(form, "device_code"), gateway.clock.now_ms()
    async with gateway.accounts.transaction() as tx:
        granter = await oauth_grants.find_device_granter(tx, device_code)
        await _lock_granter(tx, granter)
        grant = await oauth_grants.poll_device_grant(tx, device_code, client_id, granter, now_ms)
        if grant is not None and grant.user_id is not None and not grant.has_ended:
            issued, wakes = await _start(tx, gateway, grant, client, address)
    if grant is None:
        raise OAuthError("invalid_grant", "the device_code is unknown, or was told already what became of it")
    if grant.has_ended:
        raise OAuthError("expired_token", "it took too long")
    if grant.is_denied:
        raise OAuthError("access_denied", "the user does not want it")
    if grant.user_id is None:
        # A second less than agreed: clocks and networks are not exact.
        if now_ms - grant.polled_ts < (POLL_SECONDS - 1) * 1000:
            raise OAuthError("slow_down", f"ask every {POLL_SECONDS} seconds")
        raise OAuthError("authorization_pending", "the user has not decided yet")
    return await _started(gateway, grant.user_id, grant.device_id, grant.scope, issued, wakes)


async def _lock_granter(tx: Transaction, user_id: UserId | None) -> None:
    """Have a change of the granter's password, which ends all that was granted, wait for this or come first."""
    if user_id is not None:
        await users.lock_user(tx, user_id)


async def _by_refresh_token(gateway: GatewayDeps, form: Mapping[str, str], client_id: str) -> dict[str, Any]:
    token = _required(form, "refresh_token")
    try:
        issued, found = await exchange_refresh_token(gateway, token, lifetimes=_lifetimes(gateway), client_id=client_id)
    except UnknownToken as error:
        raise OAuthError("invalid_grant", error.message) from None
    except LimitExceeded as error:
        # Whatever is of 4xx would end the session for the client.
        raise Unavailable("Too many refreshes", retry_after_ms=error.retry_after_ms) from error
    except UserLocked as error:
        raise Unavailable("The account is locked") from error
    return _reply(issued, parse_scope(f"urn:matrix:client:api:* urn:matrix:client:device:{found.device_id}").text)


async def _start(
    tx: Transaction, gateway: GatewayDeps, grant: DeviceGrant, client: Mapping[str, Any], address: str
) -> tuple[IssuedTokens, Wakes]:
    """Log the device in, as its user granted."""
    assert grant.user_id is not None, "somebody granted it"
    user = await users.find_user(tx, grant.user_id)
    if user is None or user.deactivated or user.locked:
        raise OAuthError("invalid_grant", "the account is locked or closed")
    try:
        await require_free_device_id(tx, grant.user_id, grant.device_id)
    except Forbidden as error:
        raise OAuthError("invalid_grant", error.message) from None
    issued, wakes = await start_session(
        tx,
        gateway.clock,
        gateway.ids,
        _lifetimes(gateway),
        grant.user_id,
        grant.device_id,
        client.get("client_name"),
        refreshable=True,
        address=address,
    )
    await oauth_clients.add_session(tx, grant.user_id, grant.device_id, grant.client_id, gateway.clock.now_ms())
    return issued, wakes


async def _started(
    gateway: GatewayDeps, user_id: UserId, device_id: str, scope: str, issued: IssuedTokens, wakes: Wakes
) -> dict[str, Any]:
    """The answer for a device that is logged in now; only after COMMIT."""
    gateway.authenticator.forget_device(user_id, device_id)
    await wakes.publish(gateway.fanout)
    return _reply(issued, scope)


async def _end_session_of(gateway: GatewayDeps, granted: Code) -> None:
    async with gateway.accounts.reading() as tx:
        client_id = await oauth_clients.find_session_client(tx, granted.user_id, granted.device_id)
    if client_id == granted.client_id:
        await end_sessions(gateway, granted.user_id, [granted.device_id])


def _reply(issued: IssuedTokens, scope: str) -> dict[str, Any]:
    assert issued.expires_in_ms is not None, "they are short-lived"
    return {
        "access_token": issued.access_token,
        "token_type": "Bearer",
        "expires_in": issued.expires_in_ms // 1000,
        "refresh_token": issued.refresh_token,
        "scope": scope,
    }


def _lifetimes(gateway: GatewayDeps) -> TokenLifetimes:
    own = gateway.lifetimes
    return replace(own, refreshable_ms=own.refreshable_ms or DEFAULT_ACCESS_MS)


def _required(form: Mapping[str, str], name: str) -> str:
    value = form.get(name)
    if not value or len(value) > MAX_TOKEN_LENGTH:
        raise OAuthError("invalid_request", f"{name} is missing")
    return value


def _user_code(gateway: GatewayDeps) -> str:
    """A code that people can type; every letter equally likely."""
    code = ""
    while len(code) < USER_CODE_LENGTH:
        usable = [byte for byte in gateway.ids.random_bytes(32) if byte < 240]
        code += "".join(_USER_CODE_LETTERS[byte % len(_USER_CODE_LETTERS)] for byte in usable)
    return code[:USER_CODE_LENGTH]


routes = [
    Route(TOKEN_PATH, issue_tokens, methods=["POST"]),
    Route(REVOKE_PATH, revoke_token, methods=["POST"]),
    Route(DEVICE_PATH, begin_device_grant, methods=["POST"]),
]
