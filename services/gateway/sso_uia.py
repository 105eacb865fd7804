"""Single sign-on as a stage of interactive authentication: a fresh sign-in as the same user, then their word for it.

Spec: C-S API §SSO during User-Interactive Authentication.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.pages import form_of, page
from services.gateway.sso_accounts import find_account
from services.gateway.sso_attempt import browser_of, expired, remember, send_to_provider, sso_notice, take
from services.gateway.sso_provider import SSO, ProviderClient, SingleSignOn
from services.gateway.uia import PASSWORD, Flows, Stage, StageFailed, Trial
from tessera.storage import external_identities, uia_sessions, users
from tessera.storage.database import Database
from tessera.storage.sso_attempts import SsoAttempt
from tessera.storage.uia_sessions import UiaSession

CONFIRM_PATH = "/_synapse/client/oidc/confirm"

# What a client is trying to do, by the operation.
_OPERATIONS = {
    "add3PID": "add an e-mail address or telephone number to your account",
    "changePassword": "set another password for your account",
    "deactivateAccount": "close your account for ever",
    "deleteDevice": "remove a device from your account",
    "deleteDevices": "remove devices from your account",
    "generateLoginToken": "log in another device to your account",
    "uploadCrossSigningKeys": "replace the keys by which others know that your devices are yours",
}


class SsoStage(Stage):
    """Passed on the pages of this module only."""

    needs_session: ClassVar[bool] = True

    async def check(self, trial: Trial) -> object:
        raise StageFailed("M_UNAUTHORIZED", "Sign in on the page of this stage first")

    def params(self, session_id: str) -> Mapping[str, object] | None:
        return None


def own_flows(accounts: Database, sso: SingleSignOn, *, has_passwords: bool) -> Callable[[UserId], Awaitable[Flows]]:
    """How users can prove to be it: by their password and by single sign-on, as far as they have them."""

    async def flows_of(user_id: UserId) -> Flows:
        async with accounts.reading() as tx:
            user = await users.find_user(tx, user_id)
            identities = await external_identities.list_identities(tx, user_id)
        flows = []
        if has_passwords and user is not None and user.password_hash is not None:
            flows.append((PASSWORD,))
        if any(one.auth_provider in sso.providers for one in identities):
            flows.append((SSO,))
        # Who has neither is asked for what there is, and cannot pass it.
        return flows or ((PASSWORD if has_passwords else SSO,),)

    return flows_of


async def begin_operation(request: Request, session_id: str) -> Response:
    """The stage's page: on to the user's provider, or to a choice of them."""
    gateway = gateway_of(request)
    session = await find_operation(gateway, session_id)
    if session is None or session.user_id is None or gateway.sso is None:
        return expired(gateway)
    async with gateway.accounts.reading() as tx:
        identities = await external_identities.list_identities(tx, session.user_id)
    names = {one.auth_provider for one in identities}
    clients = {name: client for name, client in gateway.sso.providers.items() if name in names}
    chosen = request.query_params.get("idp")
    if chosen is None and len(clients) > 1:
        return _choice(gateway, session_id, session, clients)
    client = next(iter(clients.values()), None) if chosen is None else clients.get(chosen)
    if client is None:
        return sso_notice(gateway, "No single sign-on", "Your account has no such way to sign in.", status=404)
    return await send_to_provider(request, gateway, gateway.sso, client, uia_session_id=session_id)


async def confirm_operation(
    request: Request, gateway: GatewayDeps, client: ProviderClient, session_id: str, claims: dict[str, Any]
) -> Response:
    """Back from the provider: ask the person whether the operation is meant.

    Raises:
        NoAccount: the claims do not say who it is.
    """
    session, browser = await find_operation(gateway, session_id), browser_of(request)
    if session is None or session.user_id is None or browser is None:
        return expired(gateway)
    if await find_account(gateway, client.provider, claims) != session.user_id:
        text = f"You signed in as somebody else. This is about {session.user_id}."
        return sso_notice(gateway, "Not the same account", text, status=403)
    token = gateway.ids.token(32)
    attempt = SsoAttempt(client.provider.auth_provider, "", "", None, session_id, is_proven=True)
    if not await remember(gateway, token, browser, attempt):
        return sso_notice(gateway, "One moment", "Too many are signing in now. Please try again soon.", status=503)
    values = {
        "title": "Is this you?",
        "server_name": gateway.server_name,
        "operation": _operation(session),
        "user_id": session.user_id,
        "action": CONFIRM_PATH,
        "token": token,
    }
    return page(gateway.ids, "sso_confirm_operation.html", values)


async def finish_operation(request: Request) -> Response:
    """The person means it: the stage is passed."""
    gateway = gateway_of(request)
    form = await form_of(request)
    attempt = await take(gateway, request, form.get("token"), is_proven=True)
    if attempt is None or attempt.uia_session_id is None:
        return expired(gateway)
    if await find_operation(gateway, attempt.uia_session_id) is None:
        return expired(gateway)
    async with gateway.accounts.transaction() as tx:
        completed = await uia_sessions.complete_stage(tx, attempt.uia_session_id, SSO)
    if SSO not in completed:
        return expired(gateway)
    return page(gateway.ids, "auth_done.html", {"title": "Done", "server_name": gateway.server_name})


async def find_operation(gateway: GatewayDeps, session_id: str) -> UiaSession | None:
    """The interactive authentication of a session; None if there is none or no more."""
    if not (session_id.isascii() and session_id.isalnum()):
        return None
    async with gateway.accounts.reading() as tx:
        return await uia_sessions.find_session(tx, session_id, now_ms=gateway.clock.now_ms())


def _choice(
    gateway: GatewayDeps, session_id: str, session: UiaSession, clients: Mapping[str, ProviderClient]
) -> Response:
    path = f"/_matrix/client/v3/auth/{SSO}/fallback/web"
    links = [
        {"name": client.provider.idp_name, "url": f"{path}?{urlencode({'session': session_id, 'idp': name})}"}
        for name, client in clients.items()
    ]
    values = {
        "title": "Confirm who you are",
        "server_name": gateway.server_name,
        "links": links,
        "operation": _operation(session),
    }
    return page(gateway.ids, "sso_choice.html", values)


def _operation(session: UiaSession) -> str:
    return _OPERATIONS.get(session.operation, "change something about your account")
