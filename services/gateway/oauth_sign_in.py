"""People sign in on the server's own pages, by password or by single sign-on, for whatever their browser has open.

Spec: C-S API §OAuth 2.0 API.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import UserId
from services.gateway.dependencies import GatewayDeps
from services.gateway.login import require_password
from services.gateway.oauth_account import close_page, devices_page, reset_page
from services.gateway.oauth_consent import consent_page
from services.gateway.oauth_server import SIGN_IN_PATH, SIGNED_IN_PATH, require_oauth
from services.gateway.oauth_tasks import ACCOUNT, CLOSE_ACCOUNT, RESET_KEYS, OpenTask, find_open, sign_in_page
from services.gateway.pages import form_of
from services.gateway.sso_attempt import browser_of, expired
from services.gateway.user_identifiers import find_login_user
from tessera.http.errors import BadJson, Forbidden, InvalidParam, LimitExceeded, MissingParam, UserLocked
from tessera.storage import oauth_grants, one_time_logins, users

_REFUSED = "This name and password do not fit together."


async def sign_in(request: Request) -> Response:
    """Somebody gave a name and a password."""
    gateway = require_oauth(request)
    form = await form_of(request)
    found = await find_open(request, gateway, form.get("task"))
    if found is None or found.task.user_id is not None:
        return expired(gateway)
    if not gateway.settings.password_config.enabled:
        return await sign_in_page(gateway, found, "This server has no passwords.", 403)
    try:
        gateway.attempts.check_address("" if request.client is None else request.client.host)
        user_id = await _check_password(gateway, form.get("user", ""), form.get("password", ""))
    except LimitExceeded:
        return await sign_in_page(gateway, found, "Too many tries. Please wait a while.", 429)
    except UserLocked:
        return await sign_in_page(gateway, found, "This account has been locked.", 403)
    except (Forbidden, InvalidParam, MissingParam, BadJson):
        return await sign_in_page(gateway, found, _REFUSED, 403)
    return await _go_on(request, gateway, found, user_id)


async def signed_in(request: Request) -> Response:
    """Back from single sign-on, with a login token."""
    gateway = require_oauth(request)
    found = await find_open(request, gateway, request.query_params.get("task"))
    if found is None or found.task.user_id is not None:
        return expired(gateway)
    async with gateway.accounts.transaction() as tx:
        token = request.query_params.get("loginToken", "")
        user_id = await one_time_logins.take_login_token(tx, token, gateway.clock.now_ms())
        user = None if user_id is None else await users.find_user(tx, user_id)
    if user is None:
        return expired(gateway)
    if user.locked:
        return await sign_in_page(gateway, found, "This account has been locked.", 403)
    return await _go_on(request, gateway, found, user.user_id)


async def _check_password(gateway: GatewayDeps, name: str, password: str) -> UserId:
    """Whose name and password they are.

    Raises:
        Forbidden, InvalidParam: nobody's; all take the same time. LimitExceeded, UserLocked
    """
    kind = {"type": "m.id.user", "user": name.strip()}
    if "@" in name[1:] and ":" not in name:
        kind = {"type": "m.id.thirdparty", "medium": "email", "address": name.strip()}
    user_id = await find_login_user(gateway.accounts, {"identifier": kind}, gateway.server_name)
    if user_id is None:
        await gateway.passwords.verify(password, None)
        raise Forbidden(_REFUSED)
    gateway.attempts.check_account(user_id)
    await require_password(gateway, user_id, password)
    return user_id


async def _go_on(request: Request, gateway: GatewayDeps, found: OpenTask, user_id: UserId) -> Response:
    """The next page, for somebody who has signed in."""
    renamed, browser = gateway.ids.token(32), browser_of(request)
    assert browser is not None, "the task is the browser's"
    async with gateway.accounts.transaction() as tx:
        task = await oauth_grants.sign_in(tx, found.name, browser, renamed, user_id, gateway.clock.now_ms())
    if task is None:
        return expired(gateway)
    opened = OpenTask(renamed, task)
    if task.kind == ACCOUNT:
        return await devices_page(gateway, opened, user_id)
    if task.kind == RESET_KEYS:
        return await reset_page(gateway, opened, user_id)
    if task.kind == CLOSE_ACCOUNT:
        return close_page(gateway, opened, user_id)
    return await consent_page(gateway, opened, user_id)


routes = [
    Route(SIGN_IN_PATH, sign_in, methods=["POST"]),
    Route(SIGNED_IN_PATH, signed_in, methods=["GET"]),
]
