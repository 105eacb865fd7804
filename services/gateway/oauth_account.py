"""People's own accounts, on the server's pages: devices, the word for new cross-signing keys, the account's end.

Spec: C-S API §Account management (OAuth 2.0), §OAuth authentication.
"""

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import UserId
from services.gateway.account_management import close_account
from services.gateway.dependencies import GatewayDeps
from services.gateway.logout import end_sessions
from services.gateway.oauth_server import (
    ACCOUNT_PATH,
    CLOSE,
    CLOSE_PATH,
    RESET,
    RESET_PATH,
    SIGN_OUT_PATH,
    require_oauth,
)
from services.gateway.oauth_tasks import ACCOUNT, CLOSE_ACCOUNT, RESET_KEYS, OpenTask, begin, find_open
from services.gateway.pages import form_of, page
from services.gateway.sso_attempt import browser_of, expired, sso_notice
from services.gateway.sso_uia import find_operation
from services.gateway.uia import OAUTH, OAUTH_BEFORE, Stage, StageFailed, Trial
from tessera.storage import devices, oauth_grants, uia_sessions

MAX_SHOWN = 1_000
RESET_OPERATION = "uploadCrossSigningKeys"
MAX_PARAMETER = 255


class OAuthStage(Stage):
    """Passed on the page of this module only.

    Args:
        base_url: where people's browsers reach this server.
    """

    needs_session: ClassVar[bool] = True

    def __init__(self, base_url: str) -> None:
        self._url = base_url.rstrip("/") + ACCOUNT_PATH

    async def check(self, trial: Trial) -> object:
        raise StageFailed("M_UNAUTHORIZED", "Confirm it on the page of this stage first")

    def params(self, session_id: str) -> Mapping[str, object]:
        return {"url": f"{self._url}?{urlencode({'action': RESET, 'session': session_id})}"}


async def account(request: Request) -> Response:
    """The account's page, for an action that a client names."""
    gateway = require_oauth(request)
    query = {name: _plain(request.query_params.get(name)) for name in ("action", "device_id", "session")}
    if query["action"] == CLOSE:
        return await begin(request, gateway, CLOSE_ACCOUNT, {})
    if query["action"] != RESET:
        return await begin(request, gateway, ACCOUNT, {"device_id": query["device_id"]})
    session = await find_operation(gateway, query["session"])
    if session is None or session.operation != RESET_OPERATION:
        text = "Please begin in your app: it leads here when it has made new keys."
        return sso_notice(gateway, "Nothing to confirm", text, status=404)
    return await begin(request, gateway, RESET_KEYS, {"session": query["session"]})


async def devices_page(
    gateway: GatewayDeps, opened: OpenTask, user_id: UserId, signed_out: str | None = None
) -> Response:
    """The devices of somebody who has signed in; the one that the client named comes first."""
    named = opened.task.details["device_id"]
    async with gateway.accounts.reading() as tx:
        found = await devices.list_devices(tx, user_id)
    found.sort(key=lambda device: (device.device_id != named, -(device.last_seen_ts or 0)))
    values = {
        "title": "Your devices",
        "server_name": gateway.server_name,
        "user_id": user_id,
        "task": opened.name,
        "devices": found[:MAX_SHOWN],
        "named": named,
        "signed_out": signed_out,
        "action": SIGN_OUT_PATH,
    }
    return page(gateway.ids, "oauth_devices.html", values)


async def sign_out(request: Request) -> Response:
    """End one device."""
    gateway = require_oauth(request)
    form = await form_of(request)
    found = await _find_signed_in(request, gateway, form, ACCOUNT)
    if found is None:
        return expired(gateway)
    opened, user_id, _ = found
    device_id = _plain(form.get("device_id"))
    await end_sessions(gateway, user_id, [device_id])
    return await devices_page(gateway, opened, user_id, signed_out=device_id)


async def reset_page(gateway: GatewayDeps, opened: OpenTask, user_id: UserId) -> Response:
    """Ask whether new keys are meant, once the person has signed in as the one whose keys they are."""
    session = await find_operation(gateway, opened.task.details["session"])
    if session is None:
        return expired(gateway)
    if session.user_id != user_id:
        text = f"You signed in as somebody else. This is about {session.user_id}."
        return sso_notice(gateway, "Not the same account", text, status=403)
    values = {
        "title": "New keys?",
        "server_name": gateway.server_name,
        "user_id": user_id,
        "task": opened.name,
        "action": RESET_PATH,
    }
    return page(gateway.ids, "oauth_reset.html", values)


async def confirm_reset(request: Request) -> Response:
    """New keys are meant: the stage is passed."""
    gateway = require_oauth(request)
    found = await _find_signed_in(request, gateway, await form_of(request), RESET_KEYS)
    if found is None:
        return expired(gateway)
    opened, user_id, browser = found
    session_id = opened.task.details["session"]
    session = await find_operation(gateway, session_id)
    if session is None or session.user_id != user_id:
        return expired(gateway)
    async with gateway.accounts.transaction() as tx:
        if await oauth_grants.take_task(tx, opened.name, browser, gateway.clock.now_ms()) is None:
            return expired(gateway)
        for stage in (OAUTH, OAUTH_BEFORE):
            await uia_sessions.complete_stage(tx, session_id, stage)
    return sso_notice(gateway, "Done", "Your app goes on with the new keys. You can close this page.", status=200)


def close_page(gateway: GatewayDeps, opened: OpenTask, user_id: UserId) -> Response:
    """Ask whether the account's end is meant."""
    values = {
        "title": "Close your account?",
        "server_name": gateway.server_name,
        "user_id": user_id,
        "task": opened.name,
        "action": CLOSE_PATH,
    }
    return page(gateway.ids, "oauth_close.html", values)


async def confirm_close(request: Request) -> Response:
    """The account's end is meant."""
    gateway = require_oauth(request)
    form = await form_of(request)
    found = await _find_signed_in(request, gateway, form, CLOSE_ACCOUNT)
    if found is None:
        return expired(gateway)
    opened, user_id, browser = found
    async with gateway.accounts.transaction() as tx:
        if await oauth_grants.take_task(tx, opened.name, browser, gateway.clock.now_ms()) is None:
            return expired(gateway)
    await close_account(gateway, user_id, erase=form.get("erase") == "true")
    return sso_notice(gateway, "Closed", "Your account has been closed. You can close this page.", status=200)


async def _find_signed_in(
    request: Request, gateway: GatewayDeps, form: Mapping[str, str], kind: str
) -> tuple[OpenTask, UserId, str] | None:
    """The task that a form is of, who has signed in for it, and the browser; None unless it is of that kind."""
    opened, browser = await find_open(request, gateway, form.get("task")), browser_of(request)
    if opened is None or browser is None or opened.task.kind != kind or opened.task.user_id is None:
        return None
    return opened, opened.task.user_id, browser


def _plain(text: str | None) -> str:
    """A parameter, or nothing if it can be none of ours."""
    return text if text is not None and len(text) <= MAX_PARAMETER and text.isprintable() else ""


routes = [
    Route(ACCOUNT_PATH, account, methods=["GET"]),
    Route(SIGN_OUT_PATH, sign_out, methods=["POST"]),
    Route(RESET_PATH, confirm_reset, methods=["POST"]),
    Route(CLOSE_PATH, confirm_close, methods=["POST"]),
]
