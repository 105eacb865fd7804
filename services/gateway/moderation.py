"""Locking and suspending accounts, and who is logged in where.

Spec: C-S API §Account moderation, §Server Administration.
"""

from collections.abc import Mapping
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import InvalidIdentifier, UserId, parse_user_id, server_of
from services.gateway.administration import ADMIN_V1, AdminRequester
from services.gateway.dependencies import GatewayDep, GatewayDeps, gateway_of
from services.gateway.routing import JsonObject, client_router, client_routes, requester_of
from tessera.fanout import SessionEnd
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import devices, users
from tessera.storage.users import User

v1_router = client_router()

Mark = Literal["locked", "suspended"]


@v1_router.get("/admin/lock/{user_id}")
async def get_admin_lock_user(user_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """Whether an account is locked."""
    return json_reply({"locked": (await get_moderated_user(gateway, user_id)).locked})


@v1_router.put("/admin/lock/{user_id}")
async def set_admin_lock_user(user_id: str, admin: AdminRequester, body: JsonObject, gateway: GatewayDep) -> Response:
    """Lock an account or unlock it."""
    locked = _flag_of(body, "locked")
    await mark_user(gateway, (await get_moderated_user(gateway, user_id)).user_id, "locked", locked)
    return json_reply({"locked": locked})


@v1_router.get("/admin/suspend/{user_id}")
async def get_admin_suspend_user(user_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """Whether an account is suspended."""
    return json_reply({"suspended": (await get_moderated_user(gateway, user_id)).suspended})


@v1_router.put("/admin/suspend/{user_id}")
async def set_admin_suspend_user(
    user_id: str, admin: AdminRequester, body: JsonObject, gateway: GatewayDep
) -> Response:
    """Suspend an account, or let it act again."""
    suspended = _flag_of(body, "suspended")
    await mark_user(gateway, (await get_moderated_user(gateway, user_id)).user_id, "suspended", suspended)
    return json_reply({"suspended": suspended})


async def get_who_is(request: Request) -> Response:
    """The devices of a user with their addresses, for the user and for administrators."""
    gateway = gateway_of(request)
    requester = await requester_of(request)
    user_id = request.path_params["user_id"]
    if user_id != requester.user_id:
        if not requester.is_admin:
            raise Forbidden("You are not a server administrator")
        user_id = (await get_local_user(gateway, user_id)).user_id
    return json_reply(await who_is(gateway, user_id))


routes = [
    *client_routes("/admin/whois/{user_id}", get_who_is, methods=["GET"]),
    Route(f"{ADMIN_V1}/whois/{{user_id}}", get_who_is, methods=["GET"]),
]


async def who_is(gateway: GatewayDeps, user_id: UserId) -> dict[str, Any]:
    """The newest connection of each device, as far as it is remembered."""
    async with gateway.accounts.reading() as tx:
        found = await devices.list_devices(tx, user_id)
    shown = {}
    for device in found:
        connection = {"ip": device.last_seen_ip, "last_seen": device.last_seen_ts}
        known = {name: value for name, value in connection.items() if value is not None}
        shown[device.device_id] = {"sessions": [{"connections": [known] if known else []}]}
    return {"user_id": user_id, "devices": shown}


async def mark_user(gateway: GatewayDeps, user_id: UserId, mark: Mark, value: bool) -> None:
    """Lock or suspend an account, or not any more; the user's sessions stay, and feel it within a moment."""
    async with gateway.accounts.transaction() as tx:
        await users.set_mark(tx, user_id, mark, value)
    gateway.authenticator.forget_user(user_id)
    # Not an end of sessions, but other processes forget what they know of the tokens all the same.
    await gateway.fanout.publish_session_ends([SessionEnd(user_id, None)])


async def get_moderated_user(gateway: GatewayDeps, user_id: str) -> User:
    """A user whom an administrator may lock or suspend.

    Raises:
        InvalidParam: not one of this server's. NotFound: none, or a closed account. Forbidden: an administrator.
    """
    user = await get_local_user(gateway, user_id)
    if user.deactivated:
        raise NotFound("There is no such user")
    if user.is_admin:
        raise Forbidden("The user is a server administrator")
    return user


async def get_local_user(gateway: GatewayDeps, user_id: str) -> User:
    """A user of this server, with a closed account too. Raises InvalidParam or NotFound."""
    try:
        parsed = parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from error
    if server_of(parsed) != gateway.server_name:
        raise InvalidParam("The user does not belong to this server")
    async with gateway.accounts.reading() as tx:
        user = await users.find_user(tx, parsed)
    if user is None:
        raise NotFound("There is no such user")
    return user


def _flag_of(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        raise MissingParam(f"{name} is missing")
    if not isinstance(value, bool):
        raise BadJson(f"{name} must be a boolean")
    return value
