"""What a browser has open while somebody signs in for a client of the OAuth 2.0 API, or for their own account.

It is a row of the account store, good for this browser alone and for a quarter of an hour. Its name stands in the
pages' forms only; a new one takes its place when somebody signs in.

Spec: C-S API §OAuth 2.0 API; RFC 9700.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.dependencies import GatewayDeps
from services.gateway.oauth_clients import find_client, form_source
from services.gateway.oauth_server import DECIDE_PATH, SIGN_IN_PATH, SIGNED_IN_PATH, check_address
from services.gateway.pages import page
from services.gateway.sso_attempt import browser_of, expired, set_browser, sso_notice
from services.gateway.sso_redirects import shown_host
from tessera.http.errors import LimitExceeded
from tessera.storage import oauth_clients, oauth_grants
from tessera.storage.oauth_grants import Task

# Kinds: a client that sent a browser, a device that shows a code, one's own devices, new keys for cross-signing, and
# the end of an account.
AUTHORIZE, LINK, ACCOUNT, RESET_KEYS, CLOSE_ACCOUNT = "authorize", "link", "account", "reset", "close"

LIFETIME_MS = 15 * 60 * 1000
MAX_TASKS = 20_000  # open at once, in the whole server
_TASK = re.compile(r"[A-Za-z0-9_-]{43}")


class OpenTask(NamedTuple):
    """A task with its name, by the browser that has it open."""

    name: str
    task: Task


async def begin(request: Request, gateway: GatewayDeps, kind: str, details: Mapping[str, Any]) -> Response:
    """Remember what the browser is here for, and let somebody sign in."""
    try:
        check_address(gateway, request)
    except LimitExceeded:
        text = "Too many are signing in from here. Please try again soon."
        return sso_notice(gateway, "One moment", text, status=429)
    name, browser, now_ms = gateway.ids.token(32), browser_of(request) or gateway.ids.token(32), gateway.clock.now_ms()
    is_kept = False
    for is_full in (False, True):
        async with gateway.accounts.transaction() as tx:
            if is_full:
                await oauth_grants.forget_oldest_tasks(tx)
            if "client_id" in details:
                await oauth_clients.note_use(tx, details["client_id"], now_ms)
            is_kept = await oauth_grants.add_task(
                tx, name, browser, kind, details, expires_ts=now_ms + LIFETIME_MS, now_ms=now_ms, most=MAX_TASKS
            )
        if is_kept:
            break
    else:
        return sso_notice(gateway, "One moment", "Too many are signing in now. Please try again soon.", status=503)
    response = await sign_in_page(gateway, OpenTask(name, Task(kind, dict(details), None)))
    set_browser(response, browser)
    return response


async def find_open(request: Request, gateway: GatewayDeps, name: str | None) -> OpenTask | None:
    """What this browser has open under a name."""
    browser = browser_of(request)
    if name is None or not _TASK.fullmatch(name) or browser is None:
        return None
    async with gateway.accounts.reading() as tx:
        task = await oauth_grants.find_task(tx, name, browser, gateway.clock.now_ms())
    return None if task is None else OpenTask(name, task)


async def sign_in_page(gateway: GatewayDeps, opened: OpenTask, error: str | None = None, status: int = 200) -> Response:
    """Where somebody signs in, with what for."""
    kind, details = opened.task.kind, opened.task.details
    client = await find_client(gateway, details.get("client_id")) if kind in (AUTHORIZE, LINK) else None
    if client is None and kind in (AUTHORIZE, LINK):
        return expired(gateway)
    back = gateway.settings.client_baseurl.rstrip("/") + f"{SIGNED_IN_PATH}?{urlencode({'task': opened.name})}"
    providers = {} if gateway.sso is None else gateway.sso.providers
    links = [
        {
            "name": provider.provider.idp_name,
            "url": f"/_matrix/client/v3/login/sso/redirect/{idp_id}?{urlencode({'redirectUrl': back})}",
        }
        for idp_id, provider in providers.items()
    ]
    values = {
        "title": "Sign in",
        "server_name": gateway.server_name,
        "error": error,
        "task": opened.name,
        "purpose": kind,
        "client": None if client is None else shown_client(client),
        "links": links,
        "has_passwords": gateway.settings.password_config.enabled,
        "action": SIGN_IN_PATH,
        "cancel": DECIDE_PATH if client is not None else None,
    }
    return page(gateway.ids, "oauth_sign_in.html", values, status=status, forms=forms_of(details))


def shown_client(client: Mapping[str, Any]) -> dict[str, Any]:
    """A client as pages show it."""
    home = client["client_uri"]
    named = {key: client.get(key) for key in ("tos_uri", "policy_uri")}
    return {"name": client.get("client_name") or shown_host(home), "home": shown_host(home), "uri": home, **named}


def forms_of(details: Mapping[str, Any]) -> str:
    """Where a form of this task may lead: browsers look at redirects after it too."""
    return form_source(details["redirect_uri"]) if "redirect_uri" in details else ""
