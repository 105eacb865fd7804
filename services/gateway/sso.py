"""Login by single sign-on: to the provider and back, then on to the client with a login token.

Spec: C-S API §SSO client login/authentication, GET /login/sso/redirect.
"""

import asyncio
from typing import Any
from urllib.parse import quote, urlencode

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import UserId
from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.oauth_server import SIGNED_IN_PATH, is_on
from services.gateway.pages import page
from services.gateway.routing import client_routes
from services.gateway.sso_accounts import NoAccount, sign_in
from services.gateway.sso_attempt import expired, provider_failed, redirect, send_to_provider, sso_notice, take
from services.gateway.sso_id_tokens import InvalidIdToken
from services.gateway.sso_provider import CALLBACK_PATH, ProviderClient, ProviderFailed, SingleSignOn
from services.gateway.sso_redirects import (
    UnfitRedirect,
    check_redirect_url,
    is_whitelisted,
    shown_host,
    with_login_token,
)
from services.gateway.sso_uia import CONFIRM_PATH, confirm_operation, finish_operation
from tessera.http.errors import Unrecognized
from tessera.storage import one_time_logins
from tessera.storage.sso_attempts import SsoAttempt

log = structlog.get_logger(__name__)

# For a client that is called at once; and for a person who is first to read where it leads.
LOGIN_TOKEN_MS = 30_000
CONFIRMED_LOGIN_TOKEN_MS = 120_000
PROVIDER_SECONDS = 20.0  # for all that it is asked: a person waits
MAX_CODE_LENGTH = 8_192


async def redirect_to_sso(request: Request) -> Response:
    """To the provider, or to a page on which one is chosen."""
    return await _begin(request, None)


async def redirect_to_idp(request: Request) -> Response:
    """To the provider that the path names."""
    return await _begin(request, request.path_params["idp_id"])


async def sso_callback(request: Request) -> Response:
    """Where providers send browsers back to, with a code or an error."""
    gateway = gateway_of(request)
    if gateway.sso is None:
        return _none_here(gateway)
    attempt = await take(gateway, request, request.query_params.get("state"))
    client = None if attempt is None else gateway.sso.providers.get(attempt.auth_provider)
    if attempt is None or client is None:
        return expired(gateway)
    if request.query_params.get("error"):
        return _refused(gateway, client, request.query_params["error"])
    try:
        claims = await _fetch_claims(request, gateway, gateway.sso, client, attempt)
        if attempt.uia_session_id is not None:
            return await confirm_operation(request, gateway, client, attempt.uia_session_id, claims)
        user_id = await sign_in(gateway, client.provider, claims)
    except (ProviderFailed, InvalidIdToken) as error:
        return provider_failed(gateway, client, error)
    except NoAccount as error:
        log.info("sign-in refused", auth_provider=attempt.auth_provider, reason=str(error))
        return sso_notice(gateway, "You cannot sign in", str(error), status=403)
    assert attempt.redirect_url is not None, "it is for one of the two"
    return await _lead_on(gateway, user_id, attempt.redirect_url)


routes = [
    *client_routes("/login/sso/redirect", redirect_to_sso, methods=["GET"]),
    *client_routes("/login/sso/redirect/{idp_id}", redirect_to_idp, methods=["GET"]),
    Route(CALLBACK_PATH, sso_callback, methods=["GET"]),
    Route(CONFIRM_PATH, finish_operation, methods=["POST"]),
]


async def _begin(request: Request, idp_id: str | None) -> Response:
    gateway = gateway_of(request)
    if gateway.sso is None:
        raise Unrecognized("This server has no single sign-on")
    given = request.query_params.get("redirectUrl")
    if not given:
        return sso_notice(gateway, "Something is missing", "The app did not say where it is (redirectUrl).", status=400)
    try:
        url = check_redirect_url(given)
    except UnfitRedirect as error:
        return sso_notice(gateway, "You cannot sign in to this app", str(error), status=400)
    providers = gateway.sso.providers
    if idp_id is None and len(providers) > 1:
        return _choice(gateway, gateway.sso, url)
    client = next(iter(providers.values())) if idp_id is None else providers.get(idp_id)
    if client is None:
        return sso_notice(gateway, "Unknown provider", "This server has no such way to sign in.", status=404)
    return await send_to_provider(request, gateway, gateway.sso, client, redirect_url=url)


async def _fetch_claims(
    request: Request, gateway: GatewayDeps, sso: SingleSignOn, client: ProviderClient, attempt: SsoAttempt
) -> dict[str, Any]:
    """What the provider says, which must be the one that the browser was sent to.

    Raises:
        ProviderFailed, InvalidIdToken
    """
    metadata = await client.metadata()
    issuer, code = request.query_params.get("iss"), request.query_params.get("code")
    if issuer != metadata.issuer and (issuer is not None or metadata.names_issuer):
        raise ProviderFailed("the answer is another issuer's")
    if not code or len(code) > MAX_CODE_LENGTH:
        raise ProviderFailed("the browser came back without a code")
    try:
        async with asyncio.timeout(PROVIDER_SECONDS):
            return await client.fetch_claims(
                code=code,
                redirect_uri=sso.callback_url,
                nonce=attempt.nonce,
                code_verifier=attempt.code_verifier,
                now_ms=gateway.clock.now_ms(),
            )
    except TimeoutError as error:
        raise ProviderFailed("it takes too long") from error


async def _lead_on(gateway: GatewayDeps, user_id: UserId, url: str) -> Response:
    """To the client with a login token: at once if the operator vouches for it, else once the person agrees."""
    # Our own page asks by itself, and knows its browser.
    is_own = is_on(gateway) and url.startswith(gateway.settings.client_baseurl.rstrip("/") + SIGNED_IN_PATH + "?")
    is_trusted = is_own or is_whitelisted(url, gateway.settings.sso.client_whitelist)
    token, now_ms = f"tsl_{gateway.ids.token(24)}", gateway.clock.now_ms()
    lifetime_ms = LOGIN_TOKEN_MS if is_trusted else CONFIRMED_LOGIN_TOKEN_MS
    async with gateway.accounts.transaction() as tx:
        await one_time_logins.add_login_token(tx, user_id, token, expires_ts=now_ms + lifetime_ms, now_ms=now_ms)
    target = with_login_token(url, token)
    if is_trusted:
        return redirect(target)
    values = {
        "title": "Continue to your account",
        "server_name": gateway.server_name,
        "user_id": user_id,
        "host": shown_host(url),
        "url": target,
    }
    return page(gateway.ids, "sso_confirm_login.html", values)


def _choice(gateway: GatewayDeps, sso: SingleSignOn, url: str) -> Response:
    query = urlencode({"redirectUrl": url})
    links = [
        {
            "name": client.provider.idp_name,
            "url": f"/_matrix/client/v3/login/sso/redirect/{quote(name, safe='')}?{query}",
        }
        for name, client in sso.providers.items()
    ]
    values = {"title": "Sign in", "server_name": gateway.server_name, "links": links, "host": shown_host(url)}
    return page(gateway.ids, "sso_choice.html", values)


def _refused(gateway: GatewayDeps, client: ProviderClient, error: str) -> Response:
    name = client.provider.idp_name
    log.info("sign-in refused by provider", auth_provider=client.provider.auth_provider, error=error[:100])
    if error == "access_denied":
        text = f"{name} did not let you in, or you did not agree. You can go back to your app and try again."
    else:
        text = f"{name} could not sign you in now ({error[:100]}). Please try again later."
    return sso_notice(gateway, "Signing in did not work", text, status=403)


def _none_here(gateway: GatewayDeps) -> Response:
    return sso_notice(gateway, "No single sign-on", "This server has no single sign-on.", status=404)
