"""Login by password or by a login token. Spec: C-S API §Login (legacy), GET and POST /login."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import UserId, server_of
from services.gateway.appservice_names import APPSERVICE_LOGIN, parse_appservice_name, require_appservice
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.registration import SessionRequest
from services.gateway.routing import ClientAddress, JsonObject, client_router
from services.gateway.sessions import start_session
from services.gateway.user_identifiers import find_login_user
from services.gateway.wellknown import client_wellknown
from tessera.appservices import Registration
from tessera.http.errors import BadJson, Forbidden, MatrixError, MissingParam, UserLocked
from tessera.http.replies import json_reply
from tessera.storage import cross_signing, one_time_logins, users
from tessera.storage.database import Transaction

router = client_router()

_REFUSED = "Invalid username or password"


@router.get("/login")
async def get_login_flows(gateway: GatewayDep) -> Response:
    """The ways to log in."""
    flows: list[dict[str, Any]] = []
    if gateway.settings.password_config.enabled:
        flows.append({"type": "m.login.password"})
    if gateway.sso is not None:
        flows.append(gateway.sso.login_flow())
    if gateway.settings.login_via_existing_session.enabled:
        flows.append({"type": "m.login.token", "get_login_token": True})
    elif gateway.sso is not None:
        flows.append({"type": "m.login.token"})
    if gateway.authenticator.appservices.registrations:
        flows.append({"type": APPSERVICE_LOGIN})
    return json_reply({"flows": flows})


@router.post("/login")
async def login(request: Request, body: JsonObject, gateway: GatewayDep, client_address: ClientAddress) -> Response:
    """Log a device in; a known device gets a new token in place of its old one."""
    if body.get("type") == APPSERVICE_LOGIN:
        return json_reply(await login_by_appservice(gateway, require_appservice(gateway, request), body))
    gateway.attempts.check_address(client_address)
    kind = body.get("type")
    if kind is None:
        raise MissingParam("type is missing")
    if not isinstance(kind, str):
        raise BadJson("type must be a string")
    if kind == "m.login.password" and gateway.settings.password_config.enabled:
        return json_reply(await login_by_password(gateway, body, client_address))
    if kind == "m.login.token" and (gateway.settings.login_via_existing_session.enabled or gateway.sso is not None):
        return json_reply(await login_by_token(gateway, body, client_address))
    raise MatrixError("Unknown login type", errcode="M_UNKNOWN", status=400)


async def login_by_password(gateway: GatewayDeps, body: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Prove the password, then start the session.

    Raises:
        Forbidden: wrong name or password; both take the same time.
        LimitExceeded: too many logins or wrong passwords for the account.
        UserLocked
    """
    session = SessionRequest.parse(body, address)
    password = body.get("password")
    if password is None:
        raise MissingParam("password is missing")
    if not isinstance(password, str):
        raise BadJson("password must be a string")
    user_id = await find_login_user(gateway.accounts, body, gateway.server_name)
    if user_id is None:
        await gateway.passwords.verify(password, None)  # as long as with a wrong password
        raise Forbidden(_REFUSED)
    gateway.attempts.check_account(user_id)
    await require_password(gateway, user_id, password)
    return await begin_session(gateway, user_id, session)


async def login_by_token(gateway: GatewayDeps, body: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Use a login token up, then start the session.

    Raises:
        Forbidden: it is unknown, was used or has expired.
        UserLocked
    """
    session = SessionRequest.parse(body, address)
    token = body.get("token")
    if token is None:
        raise MissingParam("token is missing")
    if not isinstance(token, str):
        raise BadJson("token must be a string")
    async with gateway.accounts.transaction() as tx:
        user_id = await one_time_logins.take_login_token(tx, token, gateway.clock.now_ms())
        user = None if user_id is None else await users.find_user(tx, user_id)
    if user is None:
        raise Forbidden("The login token is not valid")
    if user.locked:
        raise UserLocked
    gateway.attempts.check_account(user.user_id)
    return await begin_session(gateway, user.user_id, session)


async def login_by_appservice(gateway: GatewayDeps, service: Registration, body: Mapping[str, Any]) -> dict[str, Any]:
    """Start a session of a user of the service.

    Raises:
        Exclusive: the user is not in its namespaces. Forbidden: nor registered. UserLocked
    """
    session = SessionRequest.parse(body)
    identifier = body.get("identifier")
    name = identifier.get("user") if isinstance(identifier, Mapping) else body.get("user")
    if not isinstance(name, str):
        raise BadJson("identifier.user must be a string")
    user_id = parse_appservice_name(service, name, gateway.server_name)
    async with gateway.accounts.reading() as tx:
        user = await users.find_user(tx, user_id)
    if user is None or user.deactivated:
        raise Forbidden("The user is not registered")
    if user.locked:
        raise UserLocked
    return await begin_session(gateway, user_id, session)


async def begin_session(gateway: GatewayDeps, user_id: UserId, session: SessionRequest) -> dict[str, Any]:
    """Log a device in for a user who has proven to be it: the answer of POST /login.

    Raises:
        Forbidden: the device ID is taken by one of the user's cross-signing keys.
    """
    device_id = session.device_id or gateway.ids.device_id()
    async with gateway.accounts.transaction() as tx:
        if session.device_id is not None:
            await require_free_device_id(tx, user_id, device_id)
        issued, wakes = await start_session(
            tx,
            gateway.clock,
            gateway.ids,
            gateway.lifetimes,
            user_id,
            device_id,
            session.display_name,
            refreshable=session.refreshable,
            address=session.address,
        )
    gateway.authenticator.forget_device(user_id, device_id)
    await wakes.publish(gateway.fanout)
    reply: dict[str, Any] = {
        "user_id": user_id,
        "home_server": gateway.server_name,
        "device_id": device_id,
        **issued.fields(),
    }
    if (well_known := client_wellknown(gateway.settings)) is not None:
        reply["well_known"] = well_known
    return reply


async def require_free_device_id(tx: Transaction, user_id: UserId, device_id: str) -> None:
    """Return unless a device's ID is the ID of one of the user's cross-signing keys, which stand beside device keys.

    Raises:
        Forbidden
    """
    keys = await cross_signing.find_keys(tx, user_id)
    if any(key.key_id == device_id for key in keys.values()):
        raise Forbidden("The device ID is one of the user's cross-signing keys")


async def require_password(gateway: GatewayDeps, user_id: UserId, password: str) -> None:
    """Return if it is the user's password; a hash of another make is replaced on the way.

    Raises:
        Forbidden: it is not, or there is no such user, or the account is deactivated.
        LimitExceeded: too many wrong ones.
        UserLocked: it is, and the account is locked.
    """
    gateway.attempts.check(user_id)
    user = None
    if server_of(user_id) == gateway.server_name:
        async with gateway.accounts.reading() as tx:
            user = await users.find_user(tx, user_id)
    password_hash = None if user is None else user.password_hash
    if not await gateway.passwords.verify(password, password_hash) or password_hash is None:
        gateway.attempts.note_failure(user_id)
        raise Forbidden(_REFUSED)
    if user is not None and user.locked:
        raise UserLocked
    if gateway.passwords.needs_rehash(password_hash):
        renewed = await gateway.passwords.hash(password)
        async with gateway.accounts.transaction() as tx:
            await users.replace_password_hash(tx, user_id, password_hash, renewed)
