"""The pages on which people say what a client gets: one that sent their browser here, or a device that shows a code.

Spec: C-S API §Authorisation code flow, §Device authorisation flow; RFC 6749 section 4.1, RFC 8628.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import UserId
from services.gateway.dependencies import GatewayDeps
from services.gateway.oauth_clients import find_client, is_registered
from services.gateway.oauth_server import (
    AUTHORIZATION_CODE,
    AUTHORIZE_PATH,
    DECIDE_PATH,
    LINK_PATH,
    OAuthError,
    check_address,
    issuer,
    parse_scope,
    require_oauth,
)
from services.gateway.oauth_tasks import AUTHORIZE, LINK, OpenTask, begin, find_open, forms_of, shown_client
from services.gateway.oauth_tokens import parse_user_code, shown_user_code
from services.gateway.pages import form_of, page
from services.gateway.sso_attempt import browser_of, expired, redirect, set_browser, sso_notice
from services.gateway.sso_redirects import shown_host
from tessera.http.errors import LimitExceeded
from tessera.storage import oauth_grants, users
from tessera.storage.database import Transaction
from tessera.storage.oauth_grants import Code, Task

CODE_MS = 60_000
_STATE = re.compile(r"[ -~]{0,2048}")  # Spec: RFC 6749 appendix A.5
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


async def authorize(request: Request) -> Response:
    """A client sent somebody here: let them sign in, unless the client asks for what it cannot have."""
    gateway = require_oauth(request)
    query = request.query_params
    client_id, redirect_uri = query.get("client_id"), query.get("redirect_uri", "")
    client = await find_client(gateway, client_id)
    # Nobody is sent to where no client has registered to be.
    if client is None or not is_registered(redirect_uri, client):
        text = "The app is not registered here, or asks to go where it has not registered. Please begin anew there."
        return sso_notice(gateway, "You cannot sign in to this app", text, status=400)
    state, mode = query.get("state"), query.get("response_mode", "query")
    state = state if state is not None and _STATE.fullmatch(state) else None
    details = {"client_id": client_id, "redirect_uri": redirect_uri, "state": state, "mode": mode}
    try:
        details |= _parse_authorization(request, client)
    except OAuthError as error:
        # Not at once: anybody can register a client, and have this server's address lead to theirs.
        answer = {"error": error.error, "error_description": error.message}
        return _refused_page(gateway, details, error.message, back_url(gateway, details, answer))
    return await begin(request, gateway, AUTHORIZE, details)


async def link(request: Request) -> Response:
    """Where a person types in the code that a device shows; one in the link is shown to be compared."""
    gateway = require_oauth(request)
    code = parse_user_code(request.query_params.get("user_code", ""))
    response = _link_page(gateway, "" if code is None else shown_user_code(code))
    set_browser(response, browser_of(request) or gateway.ids.token(32))
    return response


async def take_user_code(request: Request) -> Response:
    """The code was typed in."""
    gateway = require_oauth(request)
    form = await form_of(request)
    if browser_of(request) is None:  # sent from somewhere else, where nobody warned of others' codes
        return await link(request)
    try:
        check_address(gateway, request)
    except LimitExceeded:
        return _link_page(gateway, "", "Too many codes were tried from here. Please wait a minute.", 429)
    code = parse_user_code(form.get("user_code", ""))
    grant = None
    if code is not None:
        async with gateway.accounts.reading() as tx:
            grant = await oauth_grants.find_device_grant(tx, code, gateway.clock.now_ms())
    if code is None or grant is None:
        return _link_page(gateway, "", "No device is waiting with this code. It may have taken too long.", 404)
    return await begin(request, gateway, LINK, {"client_id": grant.client_id, "user_code": code})


async def decide(request: Request) -> Response:
    """The person wants it, or does not; who does not need not sign in."""
    gateway = require_oauth(request)
    form, browser = await form_of(request), browser_of(request)
    found = await find_open(request, gateway, form.get("task"))
    is_wanted = form.get("decision") == "allow"
    if found is None or browser is None or found.task.kind not in (AUTHORIZE, LINK):
        return expired(gateway)
    if is_wanted and found.task.user_id is None:
        return expired(gateway)
    user_id = found.task.user_id if is_wanted else None
    async with gateway.accounts.transaction() as tx:
        if user_id is not None:  # a change of the password ends what was begun before, and waits for this or is seen
            await users.lock_user(tx, user_id)
        task = await oauth_grants.take_task(tx, found.name, browser, gateway.clock.now_ms())
        if task is None:
            return expired(gateway)
        if task.kind == AUTHORIZE:
            return redirect(back_url(gateway, task.details, await _answer(tx, gateway, task, user_id)), status=303)
        is_decided = await oauth_grants.decide_device_grant(
            tx, task.details["user_code"], user_id, gateway.clock.now_ms()
        )
    if not is_decided:
        return expired(gateway)
    if user_id is None:
        return sso_notice(gateway, "Not linked", "The device gets nothing. You can close this page.", status=200)
    return sso_notice(gateway, "Linked", "Your device goes on by itself. You can close this page.", status=200)


async def consent_page(gateway: GatewayDeps, opened: OpenTask, user_id: UserId) -> Response:
    """What somebody who has signed in is asked."""
    details = opened.task.details
    client = await find_client(gateway, details["client_id"])
    if client is None:
        return expired(gateway)
    values = {
        "title": "Give access to your account?",
        "server_name": gateway.server_name,
        "task": opened.name,
        "user_id": user_id,
        "client": shown_client(client),
        "host": shown_host(details["redirect_uri"]) if opened.task.kind == AUTHORIZE else None,
        "user_code": shown_user_code(details["user_code"]) if opened.task.kind == LINK else None,
        "action": DECIDE_PATH,
    }
    return page(gateway.ids, "oauth_consent.html", values, forms=forms_of(details))


def _parse_authorization(request: Request, client: Mapping[str, Any]) -> dict[str, str]:
    """What is asked for.

    Raises:
        OAuthError
    """
    query = request.query_params
    if len(set(query.keys())) != len(query.multi_items()):
        raise OAuthError("invalid_request", "a parameter is there twice")
    if query.get("response_mode", "query") not in ("query", "fragment"):
        raise OAuthError("invalid_request", "response_mode must be query or fragment")
    if not _STATE.fullmatch(query.get("state", "")):
        raise OAuthError("invalid_request", "state is too long, or not plain text")
    if query.get("response_type") != "code" or "code" not in client["response_types"]:
        raise OAuthError("unsupported_response_type", "response_type must be code")
    if AUTHORIZATION_CODE not in client["grant_types"]:
        raise OAuthError("unauthorized_client", "the client has not registered this grant")
    if query.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(query.get("code_challenge", "")):
        raise OAuthError("invalid_request", "code_challenge must be there, with the code_challenge_method S256")
    if query.get("prompt") == "none":
        raise OAuthError("login_required", "people sign in here each time")
    if "request" in query or "request_uri" in query:
        raise OAuthError("request_not_supported", "requests are parameters here")
    scope = parse_scope(query.get("scope"))
    return {"code_challenge": query["code_challenge"], "scope": scope.text, "device_id": scope.device_id}


async def _answer(tx: Transaction, gateway: GatewayDeps, task: Task, user_id: UserId | None) -> dict[str, str]:
    """What the client is told: a code, or a refusal."""
    if user_id is None:
        return {"error": "access_denied", "error_description": "The user does not want it"}
    code, now_ms, details = f"tsc_{gateway.ids.token(32)}", gateway.clock.now_ms(), task.details
    granted = Code(
        details["client_id"],
        user_id,
        details["device_id"],
        details["scope"],
        details["redirect_uri"],
        details["code_challenge"],
    )
    await oauth_grants.add_code(tx, code, granted, expires_ts=now_ms + CODE_MS, now_ms=now_ms)
    return {"code": code}


def back_url(gateway: GatewayDeps, details: Mapping[str, Any], answer: Mapping[str, str]) -> str:
    """A client's registered URI with an answer. Spec: RFC 6749 section 4.1.2, RFC 9207."""
    state, url = details["state"], details["redirect_uri"]
    values = {**answer, "iss": issuer(gateway.settings), **({} if state is None else {"state": state})}
    if details["mode"] == "fragment":
        return f"{url}#{urlencode(values)}"
    return f"{url}{'&' if '?' in url else '?'}{urlencode(values)}"


def _refused_page(gateway: GatewayDeps, details: Mapping[str, Any], reason: str, url: str) -> Response:
    values = {
        "title": "You cannot sign in to this app",
        "server_name": gateway.server_name,
        "reason": reason,
        "host": shown_host(details["redirect_uri"]),
        "url": url,
    }
    return page(gateway.ids, "oauth_refused.html", values, status=400)


def _link_page(gateway: GatewayDeps, user_code: str, error: str | None = None, status: int = 200) -> Response:
    values = {
        "title": "Link a device",
        "server_name": gateway.server_name,
        "error": error,
        "user_code": user_code,
        "action": LINK_PATH,
    }
    return page(gateway.ids, "oauth_link.html", values, status=status)


routes = [
    Route(AUTHORIZE_PATH, authorize, methods=["GET"]),
    Route(LINK_PATH, link, methods=["GET"]),
    Route(LINK_PATH, take_user_code, methods=["POST"]),
    Route(DECIDE_PATH, decide, methods=["POST"]),
]
