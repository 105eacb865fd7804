"""The end of sessions. Spec: C-S API POST /logout, POST /logout/all."""

from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.routing import CurrentRequester, client_router
from services.gateway.sessions import end_all_devices, end_devices
from tessera.http.replies import json_reply
from tessera.storage import oauth_grants, one_time_logins, users

router = client_router()


@router.post("/logout")
async def logout(requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """End this session and delete its device."""
    await end_sessions(gateway, requester.user_id, [requester.device_id])
    return json_reply({})


@router.post("/logout/all")
async def logout_all(requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """End all sessions of the user and delete all devices."""
    await end_other_sessions(gateway, requester.user_id, but=None)
    return json_reply({})


async def end_sessions(gateway: GatewayDeps, user_id: UserId, device_ids: list[str]) -> None:
    """Delete devices with all that hangs on them, and end their parked syncs."""
    async with gateway.accounts.transaction() as tx:
        wakes = await end_devices(tx, user_id, device_ids)
    for device_id in device_ids:
        gateway.authenticator.forget_device(user_id, device_id)
    await wakes.publish(gateway.fanout)


async def end_other_sessions(gateway: GatewayDeps, user_id: UserId, *, but: str | None) -> None:
    """The same for all devices of a user, or all but one."""
    async with gateway.accounts.transaction() as tx:
        await users.lock_user(tx, user_id)
        await one_time_logins.delete_login_tokens(tx, user_id)
        await oauth_grants.forget_user(tx, user_id)
        wakes = await end_all_devices(tx, user_id, but=but)
    gateway.authenticator.forget_user(user_id)
    await wakes.publish(gateway.fanout)
