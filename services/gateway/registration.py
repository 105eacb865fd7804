"""Registration of accounts.

Spec: C-S API §Account registration, POST /register, GET /register/available.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, is_valid_localpart, user_id_of
from services.gateway.address_validation import in_use
from services.gateway.appservice_names import APPSERVICE_LOGIN, parse_appservice_name, require_appservice
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.passwords import MAX_PASSWORD_BYTES
from services.gateway.registration_flows import registration_flows
from services.gateway.routing import ClientAddress, JsonObject, client_router
from services.gateway.sessions import start_session
from services.gateway.uia import Proof, UiaRequest
from services.gateway.uia_stages import EMAIL, MSISDN, REGISTRATION_TOKEN, TERMS
from tessera.appservices import Registration
from tessera.http.errors import BadJson, Exclusive, Forbidden, InvalidParam, InvalidUsername, MissingParam, UserInUse
from tessera.http.replies import json_reply
from tessera.storage import registration_tokens, threepids, users
from tessera.storage.appservice_users import set_appservice
from tessera.storage.database import Transaction

router = client_router()

MAX_DEVICE_ID_LENGTH = 255
MAX_DEVICE_NAME_LENGTH = 100
_DISABLED = "Registration has been disabled. Only a server administrator can create accounts."
_TRIES_FOR_A_NAME = 5


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """The fields that login and registration share; checked, not yet acted on.

    `address` is where the device is: None if an application service or an administrator asks.
    """

    device_id: str | None
    display_name: str | None
    refreshable: bool
    address: str | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any], address: str | None = None) -> "SessionRequest":
        """Raises BadJson or InvalidParam."""
        device_id = optional_text(body, "device_id") or None
        if device_id is not None and (len(device_id) > MAX_DEVICE_ID_LENGTH or not device_id.isprintable()):
            raise InvalidParam("device_id is too long or has unprintable characters")
        display_name = optional_text(body, "initial_device_display_name")
        refreshable = optional_flag(body, "refresh_token")
        name = None if display_name is None else display_name[:MAX_DEVICE_NAME_LENGTH]
        return cls(device_id, name, refreshable, address)


@router.post("/register")
async def register(
    request: Request, body: JsonObject, gateway: GatewayDep, client_address: ClientAddress, kind: str = "user"
) -> Response:
    """Register a user after interactive authentication, or a guest or an application service's user without."""
    if body.get("type") == APPSERVICE_LOGIN:
        return json_reply(await register_by_appservice(gateway, require_appservice(gateway, request), body))
    gateway.limits.check("rc_registration", client_address)
    if kind == "guest":
        return json_reply(await register_guest(gateway, body, client_address))
    if kind != "user":
        raise InvalidParam("kind must be user or guest")
    return json_reply(await register_user(gateway, body, client_address))


@router.get("/register/available")
async def check_username_availability(username: str, gateway: GatewayDep, client_address: ClientAddress) -> Response:
    """Whether a name is free now."""
    gateway.limits.check("rc_registration", client_address)
    if not gateway.settings.enable_registration:
        raise Forbidden(_DISABLED)
    await require_free_name(gateway, parse_username(username, gateway.server_name))
    return json_reply({"available": True})


async def register_user(gateway: GatewayDeps, body: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Check the name, then the consent, then hash the password and make the account, in the specification's order."""
    if not gateway.settings.enable_registration:
        raise Forbidden(_DISABLED)
    username = optional_text(body, "username")
    password = optional_text(body, "password")
    session = SessionRequest.parse(body, address)
    inhibit_login = optional_flag(body, "inhibit_login")
    if password is not None:
        check_new_password(password)
    user_id = None
    if username:
        user_id = parse_username(username, gateway.server_name)
        if not (gateway.settings.inhibit_user_in_use_error and body.get("auth") is None):
            await require_free_name(gateway, user_id)
    flows = registration_flows(gateway.settings, has_terms=bool(gateway.policies.required))
    # The session is nobody's yet, and good for one account under any name.
    proof = await gateway.uia.prove(UiaRequest("register", (), flows), body.get("auth"))
    if password is None:
        raise MissingParam("password is missing")
    password_hash = await gateway.passwords.hash(password)
    user_id = await add_account(gateway, user_id, password_hash, proof=proof)
    return await registered_reply(gateway, user_id, None if inhibit_login else session)


async def register_by_appservice(
    gateway: GatewayDeps, service: Registration, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Make an account without a password in the service's namespace.

    Raises:
        Exclusive: the name is not in it. UserInUse, InvalidUsername, MissingParam, BadJson
    """
    username = optional_text(body, "username") or optional_text(body, "user")
    if not username:
        raise MissingParam("username is missing")
    user_id = parse_appservice_name(service, username, gateway.server_name)
    session = None if optional_flag(body, "inhibit_login") else SessionRequest.parse(body)
    await add_account(gateway, user_id, None, appservice_id=service.service_id)
    return await registered_reply(gateway, user_id, session)


async def register_guest(gateway: GatewayDeps, body: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Make a guest's account; all of the body but initial_device_display_name is ignored."""
    if not gateway.settings.allow_guest_access:
        raise Forbidden("Guest access is disabled")
    name = body.get("initial_device_display_name")
    display_name = name[:MAX_DEVICE_NAME_LENGTH] if isinstance(name, str) else None
    user_id = await add_account(gateway, None, None, is_guest=True)
    return await registered_reply(gateway, user_id, SessionRequest(None, display_name, False, address))


async def add_account(
    gateway: GatewayDeps,
    user_id: UserId | None,
    password_hash: str | None,
    *,
    displayname: str | None = None,
    is_guest: bool = False,
    is_admin: bool = False,
    proof: Proof | None = None,
    appservice_id: str | None = None,
) -> UserId:
    """Make the account, under a name of the server's choice if there is none given; the proof is used up with it.

    Raises:
        UserInUse: the name was taken meanwhile.
        MatrixError: the proof was used up meanwhile.
    """
    for _ in range(_TRIES_FOR_A_NAME):
        name = user_id or user_id_of(gateway.ids.localpart(), gateway.server_name)
        with suppress(*(() if user_id is not None else (UserInUse,))):
            async with gateway.accounts.transaction() as tx:
                if not await users.add_user(
                    tx,
                    name,
                    password_hash=password_hash,
                    displayname=displayname or (None if is_guest else name[1:].partition(":")[0]),
                    is_guest=is_guest,
                    is_admin=is_admin,
                    now_ms=gateway.clock.now_ms(),
                ):
                    raise UserInUse
                if appservice_id is not None:
                    await set_appservice(tx, name, appservice_id)
                if proof is not None:
                    await _settle_proof(tx, gateway, name, proof)
            return name
    raise UserInUse


async def _settle_proof(tx: Transaction, gateway: GatewayDeps, user_id: UserId, proof: Proof) -> None:
    """Use the proof of a registration up, and keep what its stages found out."""
    session = await gateway.uia.consume(tx, proof)
    if session is not None and session.registration_token is not None and REGISTRATION_TOKEN in session.completed:
        await registration_tokens.use_token(tx, session.registration_token)
    for stage in (EMAIL, MSISDN):
        if (address := proof.facts.get(stage)) is not None:
            await _add_address(tx, gateway, user_id, address)
    if TERMS in proof.facts:
        await users.add_consents(tx, user_id, proof.facts[TERMS], now_ms=gateway.clock.now_ms())


async def registered_reply(gateway: GatewayDeps, user_id: UserId, session: SessionRequest | None) -> dict[str, Any]:
    """The answer to a registration, with a first session unless it is inhibited (None)."""
    reply: dict[str, Any] = {"user_id": user_id, "home_server": gateway.server_name}
    if session is None:
        return reply
    device_id = session.device_id or gateway.ids.device_id()
    async with gateway.accounts.transaction() as tx:
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
    await wakes.publish(gateway.fanout)
    return {**reply, "device_id": device_id, **issued.fields()}


async def _add_address(tx: Transaction, gateway: GatewayDeps, user_id: UserId, proven: Mapping[str, Any]) -> None:
    if not await threepids.add_threepid(
        tx,
        user_id,
        proven["medium"],
        proven["address"],
        validated_ts=proven["validated_ts"],
        now_ms=gateway.clock.now_ms(),
    ):
        raise in_use()
    await threepids.end_validation(tx, proven["session_id"])


def parse_username(username: str, server_name: ServerName) -> UserId:
    """The user ID for a wished name; capitals are folded, since new IDs have none.

    Spec: Appendices §User Identifiers, "Mapping from other character sets".

    Raises:
        InvalidUsername: also for a name of digits and underscores' length beyond what an ID may have.
    """
    localpart = username.lower()
    if not is_valid_localpart(localpart):
        raise InvalidUsername("User names may have a-z, 0-9 and ._=-/+ only")
    if localpart.startswith("_"):
        raise InvalidUsername("User names must not begin with an underscore")
    try:
        return user_id_of(localpart, server_name)
    except InvalidIdentifier as error:
        raise InvalidUsername("The user name is too long") from error


async def require_free_name(gateway: GatewayDeps, user_id: UserId) -> None:
    """Raises Exclusive for a name that an application service claims, UserInUse for one that somebody has or had."""
    if gateway.claims.is_user_claimed(user_id):
        raise Exclusive("The user name is reserved by an application service")
    async with gateway.accounts.reading() as tx:
        if await users.user_exists(tx, user_id):
            raise UserInUse()


def check_new_password(password: str) -> str:
    """Raises InvalidParam for a password that cannot be one."""
    if not password:
        raise InvalidParam("The password must not be empty")
    if len(password.encode("utf-8", "surrogatepass")) > MAX_PASSWORD_BYTES:
        raise InvalidParam(f"The password is longer than {MAX_PASSWORD_BYTES} bytes")
    return password


def optional_text(body: Mapping[str, Any], name: str) -> str | None:
    """A field that is a string if it is there. Raises BadJson."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadJson(f"{name} must be a string")
    return value


def optional_flag(body: Mapping[str, Any], name: str) -> bool:
    """A field that is a boolean if it is there, else false. Raises BadJson."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadJson(f"{name} must be a boolean")
    return bool(value)
