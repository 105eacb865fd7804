"""Changing the password and closing the account. Spec: C-S API §Password management, §Account deactivation."""

import asyncio

import structlog
from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.departures import SEED_BYTES, depart
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.registration import check_new_password, optional_flag
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from services.gateway.sessions import Wakes, end_all_devices
from services.gateway.uia import PASSWORD_FLOWS, UiaRequest
from tessera.http.errors import BadJson, MatrixError, MissingParam
from tessera.http.replies import json_reply
from tessera.storage import departures, profiles, pushers, users
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.departures import Departure
from tessera.storage.profiles import Profile

router = client_router()
log = structlog.get_logger(__name__)

DEPARTURE_SECONDS = 10.0  # after that the answer goes out and a sweep does the rest


@router.post("/account/password")
async def change_password(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Change the password after interactive authentication; other sessions end unless the client says otherwise."""
    new_password = body.get("new_password")
    if new_password is not None and not isinstance(new_password, str):
        raise BadJson("new_password must be a string")
    logout_devices = body.get("logout_devices", True)
    if not isinstance(logout_devices, bool):
        raise BadJson("logout_devices must be a boolean")
    await gateway.uia.require(
        UiaRequest("changePassword", (requester.user_id,), PASSWORD_FLOWS, requester.user_id), body.get("auth")
    )
    if new_password is None:
        raise MissingParam("new_password is missing")
    await set_password(
        gateway, requester.user_id, new_password, keep_device=requester.device_id, logout_devices=logout_devices
    )
    return json_reply({})


@router.post("/account/deactivate")
async def deactivate_account(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Close the account for ever after interactive authentication."""
    erase = optional_flag(body, "erase")
    await gateway.uia.require(
        UiaRequest("deactivateAccount", (requester.user_id,), PASSWORD_FLOWS, requester.user_id), body.get("auth")
    )
    await deactivate(gateway, requester.user_id, erase=erase)
    # No third-party identifier was ever bound here.
    return json_reply({"id_server_unbind_result": "success"})


async def set_password(
    gateway: GatewayDeps, user_id: UserId, new_password: str, *, keep_device: str | None, logout_devices: bool
) -> None:
    """Store a new password; with `logout_devices` end all sessions but one and drop the pushers of the others."""
    password_hash = await gateway.passwords.hash(check_new_password(new_password))
    wakes = Wakes({})
    async with gateway.accounts.transaction() as tx:
        await users.lock_user(tx, user_id)
        await users.set_password_hash(tx, user_id, password_hash)
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
        if erase:
            await profiles.set_profile(tx, user_id, Profile(None, None, None))
        if closed:
            await departures.add_departure(tx, user_id, departure.seed)
        wakes = await end_all_devices(tx, user_id)
    gateway.authenticator.forget_user(user_id)
    await wakes.publish(gateway.fanout)
    if closed:
        await _leave_rooms(gateway, departure)


async def _leave_rooms(gateway: GatewayDeps, departure: Departure) -> None:
    """Leave what can be left at once; the debt stays for the sweep."""
    try:
        async with asyncio.timeout(DEPARTURE_SECONDS):
            await depart(gateway.rooms, departure)
    except (TimeoutError, MatrixError, DatabaseUnavailable) as error:
        log.info("rooms not yet left", user_id=departure.user_id, reason=type(error).__name__)
