"""Changing the password and closing the account. Spec: C-S API §Password management, §Account deactivation."""

import asyncio

import structlog
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.departures import SEED_BYTES, depart
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.registration import check_new_password, optional_flag
from services.gateway.routing import CurrentRequester, JsonObject, client_router, requester_of
from services.gateway.sessions import Wakes, end_all_devices
from services.gateway.third_party_ids import NO_SUPPORT, SUPPORTED, unbind
from services.gateway.uia import PASSWORD_FLOWS, Proof, UiaRequest
from services.gateway.uia_stages import EMAIL, MSISDN
from tessera.http.errors import BadJson, Forbidden, MatrixError, MissingParam, MissingToken
from tessera.http.replies import json_reply
from tessera.storage import departures, oauth_grants, one_time_logins, profiles, pushers, threepids, users
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.departures import Departure
from tessera.storage.profiles import Profile

router = client_router()
log = structlog.get_logger(__name__)

DEPARTURE_SECONDS = 10.0  # after that the answer goes out and a sweep does the rest


@router.post("/account/password")
async def change_password(request: Request, body: JsonObject, gateway: GatewayDep) -> Response:
    """Change the password after interactive authentication; other sessions end unless the client says otherwise.

    Who has forgotten it, and so has no session, proves an address of the account instead.
    """
    if not gateway.settings.password_config.enabled:
        raise Forbidden("Nobody has a password here: sign in by single sign-on")
    new_password = body.get("new_password")
    if new_password is not None and not isinstance(new_password, str):
        raise BadJson("new_password must be a string")
    logout_devices = body.get("logout_devices", True)
    if not isinstance(logout_devices, bool):
        raise BadJson("logout_devices must be a boolean")
    if new_password is not None:
        check_new_password(new_password)
    user_id, device_id = await _require_owner(gateway, request, body.get("auth"))
    if new_password is None:
        raise MissingParam("new_password is missing")
    await set_password(gateway, user_id, new_password, keep_device=device_id, logout_devices=logout_devices)
    return json_reply({})


@router.post("/account/deactivate")
async def deactivate_account(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Close the account for ever after interactive authentication."""
    erase = optional_flag(body, "erase")
    await gateway.uia.require(
        UiaRequest("deactivateAccount", (requester.user_id,), PASSWORD_FLOWS, requester.user_id), body.get("auth")
    )
    return json_reply({"id_server_unbind_result": await close_account(gateway, requester.user_id, erase=erase)})


async def close_account(gateway: GatewayDeps, user_id: UserId, *, erase: bool) -> str:
    """Close an account whose user has confirmed it; whether identity servers forgot its addresses too."""
    result = await _unbind_all(gateway, user_id)
    await deactivate(gateway, user_id, erase=erase)
    return result


async def _require_owner(gateway: GatewayDeps, request: Request, auth: object) -> tuple[UserId, str | None]:
    """Whose password is to be changed, and the session that asks for it, if one does.

    Raises:
        MissingToken: there is no session, and addresses cannot be proven here.
        UserInteractionRequired
        MatrixError: M_THREEPID_NOT_FOUND: the address is no account's any more.
    """
    try:
        requester = await requester_of(request)
    except MissingToken:
        flows = tuple((stage,) for stage in (EMAIL, MSISDN) if stage in gateway.uia.stages)
        if not flows:
            raise
        proof = await gateway.uia.require(UiaRequest("changePassword", (), flows), auth)
        return await _owner_of(gateway, proof), None
    uia_request = UiaRequest("changePassword", (requester.user_id,), PASSWORD_FLOWS, requester.user_id)
    await gateway.uia.require(uia_request, auth)
    return requester.user_id, requester.device_id


async def _owner_of(gateway: GatewayDeps, proof: Proof) -> UserId:
    (proven,) = proof.facts.values()
    async with gateway.accounts.transaction() as tx:
        owner = await threepids.find_owner(tx, proven["medium"], proven["address"])
        await threepids.end_validation(tx, proven["session_id"])
    if owner is None:
        raise MatrixError("No account has this address", errcode="M_THREEPID_NOT_FOUND", status=400)
    return owner


async def set_password(
    gateway: GatewayDeps, user_id: UserId, new_password: str, *, keep_device: str | None, logout_devices: bool
) -> None:
    """Store a new password; with `logout_devices` end all sessions but one and drop the pushers of the others."""
    password_hash = await gateway.passwords.hash(check_new_password(new_password))
    wakes = Wakes({})
    async with gateway.accounts.transaction() as tx:
        await users.lock_user(tx, user_id)
        await users.set_password_hash(tx, user_id, password_hash)
        await one_time_logins.delete_login_tokens(tx, user_id)
        await oauth_grants.forget_user(tx, user_id)
        if logout_devices:
            await pushers.delete_pushers_of_other_devices(tx, user_id, keep_device or "")
            wakes = await end_all_devices(tx, user_id, but=keep_device)
    gateway.authenticator.forget_user(user_id)
    await wakes.publish(gateway.fanout)


async def deactivate(gateway: GatewayDeps, user_id: UserId, *, erase: bool) -> None:
    """Close an account: no password, no session, no pusher, no room; with `erase` nothing of its own but the name."""
    departure = Departure(user_id, gateway.ids.random_bytes(SEED_BYTES))
    async with gateway.accounts.transaction() as tx:
        closed = await users.deactivate(tx, user_id, erase=erase)
        await pushers.delete_pushers_of_other_devices(tx, user_id, "")
        await threepids.delete_threepids(tx, user_id)
        await one_time_logins.delete_login_tokens(tx, user_id)
        await oauth_grants.forget_user(tx, user_id)
        if erase:
            await profiles.set_profile(tx, user_id, Profile(None, None, None))
        if closed:
            await departures.add_departure(tx, user_id, departure.seed)
        wakes = await end_all_devices(tx, user_id)
    gateway.authenticator.forget_user(user_id)
    await wakes.publish(gateway.fanout)
    if closed:
        await _leave_rooms(gateway, departure)


async def _unbind_all(gateway: GatewayDeps, user_id: UserId) -> str:
    """Have identity servers forget the addresses of an account; one that does not answer does not keep it open."""
    async with gateway.accounts.reading() as tx:
        bindings = await threepids.list_all_bindings(tx, user_id)
    result = SUPPORTED
    for medium, address, id_server in bindings:
        try:
            done = await unbind(gateway, user_id, medium, address, id_server)
        except MatrixError:
            done = NO_SUPPORT
        result = result if done == SUPPORTED else NO_SUPPORT
    return result


async def _leave_rooms(gateway: GatewayDeps, departure: Departure) -> None:
    """Leave what can be left at once; the debt stays for the sweep."""
    try:
        async with asyncio.timeout(DEPARTURE_SECONDS):
            await depart(gateway.rooms, departure)
    except (TimeoutError, MatrixError, DatabaseUnavailable) as error:
        log.info("rooms not yet left", user_id=departure.user_id, reason=type(error).__name__)
