"""One sign-in by a provider: a browser is sent there with a state, and comes back with it.

The state is good once, for fifteen minutes, and for the browser that holds the cookie: who follows somebody else's link
back from the provider would else be signed in as them.
"""

import re

import structlog
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.dependencies import GatewayDeps
from services.gateway.pages import page
from services.gateway.sso_provider import ProviderClient, ProviderFailed, SingleSignOn
from tessera.http.errors import LimitExceeded
from tessera.storage import sso_attempts
from tessera.storage.sso_attempts import SsoAttempt

log = structlog.get_logger(__name__)

# The prefix makes browsers refuse it from any other host, and without TLS.
COOKIE = "__Host-tessera_sso"
LIFETIME_MS = 15 * 60 * 1000
MAX_ATTEMPTS = 20_000  # under way at once, in the whole server
MAX_STATE_LENGTH = 100
_BROWSER = re.compile(r"[A-Za-z0-9_-]{43}")


async def send_to_provider(
    request: Request,
    gateway: GatewayDeps,
    sso: SingleSignOn,
    client: ProviderClient,
    *,
    redirect_url: str | None = None,
    uia_session_id: str | None = None,
) -> Response:
    """The redirect to a provider, for a login or for an interactive authentication; or a page that says why not."""
    try:
        gateway.limits.check("tessera.rc_sso", "" if request.client is None else request.client.host)
    except LimitExceeded:
        return sso_notice(
            gateway, "One moment", "Too many are signing in from here. Please try again soon.", status=429
        )
    state, nonce, verifier = (gateway.ids.token(32) for _ in range(3))
    try:
        url = await client.authorization_url(
            redirect_uri=sso.callback_url,
            state=state,
            nonce=nonce,
            code_verifier=verifier,
            is_fresh=uia_session_id is not None,
        )
    except ProviderFailed as error:
        return provider_failed(gateway, client, error)
    attempt = SsoAttempt(client.provider.auth_provider, nonce, verifier, redirect_url, uia_session_id)
    browser = browser_of(request) or gateway.ids.token(32)
    if not await remember(gateway, state, browser, attempt):
        return sso_notice(gateway, "One moment", "Too many are signing in now. Please try again soon.", status=503)
    response = redirect(url)
    set_browser(response, browser)
    return response


async def remember(gateway: GatewayDeps, state: str, browser: str, attempt: SsoAttempt) -> bool:
    """Keep an attempt for its browser; False if there are too many."""
    now_ms = gateway.clock.now_ms()
    async with gateway.accounts.transaction() as tx:
        return await sso_attempts.add_attempt(
            tx, state, browser, attempt, expires_ts=now_ms + LIFETIME_MS, now_ms=now_ms, most=MAX_ATTEMPTS
        )


async def take(
    gateway: GatewayDeps, request: Request, state: str | None, *, is_proven: bool = False
) -> SsoAttempt | None:
    """Use an attempt of this browser up; None if there is none."""
    browser = browser_of(request)
    if not state or len(state) > MAX_STATE_LENGTH or browser is None:
        return None
    async with gateway.accounts.transaction() as tx:
        return await sso_attempts.take_attempt(tx, state, browser, is_proven=is_proven, now_ms=gateway.clock.now_ms())


def browser_of(request: Request) -> str | None:
    """The secret in the browser's cookie."""
    value = request.cookies.get(COOKIE)
    return value if value is not None and _BROWSER.fullmatch(value) else None


def set_browser(response: Response, browser: str) -> None:
    """Have the browser keep the secret by which it is known again."""
    # Lax: it comes along when the provider sends the browser back, and with nothing that other pages post.
    response.set_cookie(
        COOKIE, browser, max_age=LIFETIME_MS // 1000, path="/", secure=True, httponly=True, samesite="lax"
    )


def redirect(url: str, status: int = 302) -> Response:
    """Send the browser on, with nothing of this address told there."""
    headers = {"Location": url, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return Response(status_code=status, headers=headers)


def sso_notice(gateway: GatewayDeps, title: str, text: str, *, status: int) -> Response:
    """A page that says why it does not go on."""
    values = {"title": title, "server_name": gateway.server_name, "text": text}
    return page(gateway.ids, "notice.html", values, status=status)


def expired(gateway: GatewayDeps) -> Response:
    """The page for whoever comes back with a state that is not theirs, or no more."""
    text = (
        "It took too long, was finished already, or was begun in another browser or private window. "
        "Please go back to your app and begin anew; cookies must be allowed for this site."
    )
    return sso_notice(gateway, "This sign-in has ended", text, status=400)


def provider_failed(gateway: GatewayDeps, client: ProviderClient, error: Exception) -> Response:
    """The page for a provider that does not answer as it should; why is for the operator's log."""
    log.warning("sign-in failed", auth_provider=client.provider.auth_provider, reason=str(error))
    text = f"{client.provider.idp_name} could not confirm who you are. Please try again later."
    return sso_notice(gateway, "Signing in did not work", text, status=502)
