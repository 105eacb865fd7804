"""What the server tells its users, in a room with each of them.

Spec: C-S API §Server Notices; as Synapse's server notices API.
"""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from matrixcore.identifiers import EventId, RoomId, UserId, parse_user_id, server_of
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.administration import ADMIN_V1, AdminRequester
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.member_profiles import load_profile
from services.gateway.new_room import NewRoom
from services.gateway.path_identifiers import user_id_of
from services.gateway.room_changes import Session
from services.gateway.room_membership import join_room
from services.gateway.routing import JsonObject
from services.gateway.tags import change_tags
from tessera.commands import Append, NewEvent, transaction_command_id
from tessera.config.sections import ServerNotices
from tessera.http.errors import BadJson, InvalidParam, MatrixError, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import notice_rooms, profiles, user_rooms, users
from tessera.storage.profiles import Profile

router = APIRouter(prefix=ADMIN_V1)

TAG = "m.server_notice"
READERS_LEVEL = -10  # users read notices and answer none


@router.post("/send_server_notice")
async def send_server_notice(body: JsonObject, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """Tell a user something; the same request again is another notice."""
    return json_reply({"event_id": await _send(gateway, body, None)})


@router.put("/send_server_notice/{txn_id}")
async def send_server_notice_once(
    txn_id: str, body: JsonObject, admin: AdminRequester, gateway: GatewayDep
) -> Response:
    """Tell a user something; the same request again answers with the same event's ID."""
    path = f"/send_server_notice/{txn_id}"
    command_id = transaction_command_id(admin.user_id, admin.device_id or None, "PUT", path)
    return json_reply({"event_id": await _send(gateway, body, command_id)})


async def _send(gateway: GatewayDeps, body: dict[str, Any], command_id: bytes | None) -> EventId:
    settings = gateway.settings.server_notices
    if settings is None:
        raise MatrixError("Server notices are not enabled on this server", errcode="M_UNKNOWN", status=400)
    user_id, event = await _target_of(gateway, body), _event_of(body)
    room_id = await ensure_room(gateway, settings, user_id)
    outcome = await gateway.rooms.submit(room_id, system_user(gateway, settings), Append(event), command_id=command_id)
    return outcome.event_ids[0]


def system_user(gateway: GatewayDeps, settings: ServerNotices) -> UserId:
    """Who sends the notices."""
    return parse_user_id(f"@{settings.system_mxid_localpart}:{gateway.server_name}")


async def ensure_room(gateway: GatewayDeps, settings: ServerNotices, user_id: UserId) -> RoomId:
    """The user's room for notices, to which the user is invited at least."""
    system = system_user(gateway, settings)
    async with gateway.accounts.reading() as tx:
        room_id = await notice_rooms.find_notice_room(tx, user_id)
        row = None if room_id is None else await user_rooms.find_room(tx, user_id, room_id)
    if room_id is None:
        room_id = await _make_room(gateway, settings, system, user_id)
    if row is None or row.membership not in ("invite", "join"):
        await _invite(gateway, system, user_id, room_id)
        if settings.auto_join:
            await join_room(gateway.rooms, Session(user_id), room_id, {})
    return room_id


async def _make_room(gateway: GatewayDeps, settings: ServerNotices, system: UserId, user_id: UserId) -> RoomId:
    async with gateway.accounts.transaction() as tx:
        await users.add_user(
            tx,
            system,
            password_hash=None,
            displayname=settings.system_mxid_display_name,
            now_ms=gateway.clock.now_ms(),
        )
        shown = Profile(settings.system_mxid_display_name, settings.system_mxid_avatar_url, None)
        await profiles.set_profile(tx, system, shown)
    state = []
    if settings.room_avatar_url is not None:
        state.append(NewEvent("m.room.avatar", "", {"url": settings.room_avatar_url}))
    room = NewRoom(
        system,
        ROOM_VERSIONS[gateway.settings.default_room_version],
        "private_chat",
        is_public=False,
        name=settings.room_name,
        topic=settings.room_topic,
        creation_content={"m.federate": False},
        initial_state=tuple(state),
        power_level_override={"users_default": READERS_LEVEL},
    )
    room_id = await gateway.room_maker.create(Session(system), room)
    async with gateway.accounts.transaction() as tx:
        if await notice_rooms.add_notice_room(tx, user_id, room_id):
            return room_id
        # Another request was first; nobody knows of this room.
        first = await notice_rooms.find_notice_room(tx, user_id)
    assert first is not None
    return first


async def _invite(gateway: GatewayDeps, system: UserId, user_id: UserId, room_id: RoomId) -> None:
    """Whatever the user thinks of invites: the room is tagged before the invite is seen."""
    await change_tags(gateway.accounts, gateway.fanout, user_id, room_id, lambda tags: {**tags, TAG: {}})
    content = (await load_profile(gateway.accounts, user_id)).content("invite")
    await gateway.rooms.append(
        room_id,
        Session(system),
        NewEvent("m.room.member", user_id, content),
        done_if_membership=("invite", "join"),
    )


async def _target_of(gateway: GatewayDeps, body: dict[str, Any]) -> UserId:
    if "user_id" not in body:
        raise MissingParam("user_id is missing")
    if not isinstance(body["user_id"], str):
        raise BadJson("user_id must be a string")
    user_id = user_id_of(body["user_id"])
    if server_of(user_id) != gateway.server_name:
        raise InvalidParam("Server notices can only be sent to local users")
    async with gateway.accounts.reading() as tx:
        user = await users.find_user(tx, user_id)
    if user is None or user.deactivated:
        raise NotFound("User not found")
    return user_id


def _event_of(body: dict[str, Any]) -> NewEvent:
    content, event_type = body.get("content"), body.get("type", "m.room.message")
    state_key = body.get("state_key")
    if not isinstance(content, dict):
        raise BadJson("content must be an object")
    if not isinstance(event_type, str) or not (state_key is None or isinstance(state_key, str)):
        raise BadJson("type and state_key must be strings")
    if event_type == "m.room.member":
        raise InvalidParam("A notice cannot change memberships")
    return NewEvent(event_type, state_key, content)
