"""Administration of accounts, with the paths and fields of Synapse's admin API, for its tools."""

from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.account_management import deactivate, set_password
from services.gateway.admin_account_changes import AccountChanges, change_account, find_or_add_account
from services.gateway.admin_listing import PagingQuery
from services.gateway.administration import ADMIN_V1, ADMIN_V2, AdminRequester
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.devices import device_json
from services.gateway.logout import end_sessions
from services.gateway.moderation import get_local_user, mark_user
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.registration import optional_flag, optional_text, parse_username, require_free_name
from services.gateway.routing import JsonObject, absolute_router
from tessera.http.errors import BadJson, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import account_listing, devices, external_identities, threepids, user_rooms
from tessera.storage.account_listing import ACCOUNT_ORDERS, Account, AccountFilter

admin_router = absolute_router()

_USERS_V1, _USERS_V2 = f"{ADMIN_V1}/users", f"{ADMIN_V2}/users"


@admin_router.get(_USERS_V2)
async def list_users(
    admin: AdminRequester,
    gateway: GatewayDep,
    paging: PagingQuery,
    name: str | None = None,
    user_id: str | None = None,
    guests: bool = True,
    admins: bool | None = None,
    deactivated: bool = False,
    locked: bool = False,
) -> Response:
    """A page of the accounts; those that are closed or locked only where they are asked for."""
    wanted = AccountFilter(
        name,
        user_id,
        None if guests else False,
        admins,
        None if deactivated else False,
        None if locked else False,
    )
    async with gateway.accounts.reading() as tx:
        found, total = await account_listing.list_accounts(
            tx,
            wanted,
            order=paging.order(ACCOUNT_ORDERS, "name"),
            descending=bool(paging.descending),
            limit=paging.limit,
            offset=paging.start,
        )
    reply: dict[str, Any] = {"users": [account_json(one) for one in found], "total": total}
    if paging.start + len(found) < total:
        reply["next_token"] = str(paging.start + len(found))
    return json_reply(reply)


@admin_router.get(f"{_USERS_V2}/{{user_id}}")
async def get_user(user_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """One account."""
    user = await get_local_user(gateway, user_id)
    return json_reply(await load_account(gateway, user.user_id))


@admin_router.put(f"{_USERS_V2}/{{user_id}}")
async def put_user(user_id: str, admin: AdminRequester, body: JsonObject, gateway: GatewayDep) -> Response:
    """Make an account (201) or change one (200)."""
    changes = AccountChanges.parse(body)
    target, is_new = await find_or_add_account(gateway, user_id, changes)
    await change_account(gateway, target, changes, by=admin.user_id)
    return json_reply(await load_account(gateway, target), 201 if is_new else 200)


@admin_router.post(f"{ADMIN_V1}/reset_password/{{user_id}}")
async def reset_password(user_id: str, admin: AdminRequester, body: JsonObject, gateway: GatewayDep) -> Response:
    """Give an account another password, by default with an end of all its sessions."""
    user = await get_local_user(gateway, user_id)
    password = optional_text(body, "new_password")
    if password is None:
        raise MissingParam("new_password is missing")
    logout_devices = body.get("logout_devices", True)
    if not isinstance(logout_devices, bool):
        raise BadJson("logout_devices must be a boolean")
    await set_password(gateway, user.user_id, password, keep_device=None, logout_devices=logout_devices)
    return json_reply({})


@admin_router.post(f"{ADMIN_V1}/deactivate/{{user_id}}")
async def deactivate_user(
    user_id: str, admin: AdminRequester, body: OptionalJsonObject, gateway: GatewayDep
) -> Response:
    """Close an account for ever."""
    erase = optional_flag(body, "erase")
    user = await get_local_user(gateway, user_id)
    await deactivate(gateway, user.user_id, erase=erase)
    return json_reply({"id_server_unbind_result": "success"})


@admin_router.get(f"{_USERS_V1}/{{user_id}}/admin")
async def is_user_admin(user_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """Whether a user is an administrator."""
    return json_reply({"admin": (await get_local_user(gateway, user_id)).is_admin})


@admin_router.put(f"{_USERS_V1}/{{user_id}}/admin")
async def set_user_admin(user_id: str, admin: AdminRequester, body: JsonObject, gateway: GatewayDep) -> Response:
    """Make a user an administrator, or take that back."""
    if not isinstance(body.get("admin"), bool):
        raise BadJson("admin must be a boolean")
    user = await get_local_user(gateway, user_id)
    await change_account(gateway, user.user_id, AccountChanges(is_admin=body["admin"]), by=admin.user_id)
    return json_reply({})


@admin_router.put(f"{ADMIN_V1}/suspend/{{user_id}}")
async def suspend_user(user_id: str, admin: AdminRequester, body: JsonObject, gateway: GatewayDep) -> Response:
    """Suspend an account, or let it act again."""
    suspend = body.get("suspend")
    if not isinstance(suspend, bool):
        raise BadJson("suspend must be a boolean")
    user = await get_local_user(gateway, user_id)
    await mark_user(gateway, user.user_id, "suspended", suspend)
    return json_reply({f"user_{user.user_id}_suspended": suspend})


@admin_router.get(f"{_USERS_V1}/{{user_id}}/joined_rooms")
async def list_joined_rooms_of_user(user_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """The rooms that a user is joined to."""
    user = await get_local_user(gateway, user_id)
    async with gateway.accounts.reading() as tx:
        rooms = await user_rooms.list_rooms(tx, user.user_id, ("join",))
    return json_reply({"joined_rooms": [room.room_id for room in rooms], "total": len(rooms)})


@admin_router.get(f"{_USERS_V2}/{{user_id}}/devices")
async def list_devices_of_user(user_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """The devices of a user."""
    user = await get_local_user(gateway, user_id)
    async with gateway.accounts.reading() as tx:
        found = await devices.list_devices(tx, user.user_id)
    shown = [{**device_json(device), "user_id": user.user_id} for device in found]
    return json_reply({"devices": shown, "total": len(shown)})


@admin_router.delete(f"{_USERS_V2}/{{user_id}}/devices/{{device_id}}")
async def delete_device_of_user(user_id: str, device_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """End a session of a user."""
    user = await get_local_user(gateway, user_id)
    await end_sessions(gateway, user.user_id, [device_id])
    return json_reply({})


@admin_router.get(f"{ADMIN_V1}/username_available")
async def is_username_available(username: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """Whether a name is free, also where people may not register."""
    await require_free_name(gateway, parse_username(username, gateway.server_name))
    return json_reply({"available": True})


async def load_account(gateway: GatewayDeps, user_id: UserId) -> dict[str, Any]:
    """An account with all that administrators are shown of it. Raises NotFound."""
    async with gateway.accounts.reading() as tx:
        account = await account_listing.find_account(tx, user_id)
        addresses = await threepids.list_threepids(tx, user_id)
        identities = await external_identities.list_identities(tx, user_id)
    if account is None:
        raise NotFound("There is no such user")
    shown = [
        {"medium": one.medium, "address": one.address, "added_at": one.added_ts, "validated_at": one.validated_ts}
        for one in addresses
    ]
    return {
        **account_json(account),
        "threepids": shown,
        "external_ids": [one._asdict() for one in identities],
        "appservice_id": account.appservice_id,
        "consent_server_notice_sent": None,
        "consent_version": None,
        "consent_ts": None,
    }


def account_json(account: Account) -> dict[str, Any]:
    """A line of the list of accounts."""
    return {
        "name": account.user_id,
        "is_guest": account.is_guest,
        "admin": account.is_admin,
        "user_type": account.user_type,
        "deactivated": account.deactivated,
        "erased": account.erased,
        "shadow_banned": False,
        "locked": account.locked,
        "suspended": account.suspended,
        "displayname": account.displayname,
        "avatar_url": account.avatar_url,
        "creation_ts": account.created_ts,
        "last_seen_ts": account.last_seen_ts,
    }
