"""POST /createRoom. Spec: C-S API §Creation."""

from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, RoomAlias, ServerName, parse_room_alias
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from services.gateway.dependencies import GatewayDep
from services.gateway.new_room import InvalidRoomRequest, parse_new_room
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.room_access import refuse_guest
from services.gateway.room_changes import session_of
from services.gateway.room_directory import check_owner
from services.gateway.routing import CurrentRequester, client_router
from services.gateway.third_party_invites import invite_addresses, parse_address_invites
from tessera.http.errors import BadJson, InvalidParam, MatrixError, UnsupportedRoomVersion
from tessera.http.replies import json_reply

router = client_router()


@router.post("/createRoom")
async def create_room(body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Make a room with everything that the request asks for, or nothing."""
    refuse_guest(requester)
    gateway.limits.check("rc_room_creation", requester.user_id)
    addresses = parse_address_invites(gateway, body)
    body = {**body, "invite_3pid": None}
    rules = _rules_of(body, gateway.settings.default_room_version)
    try:
        room = parse_new_room(body, requester.user_id, rules, _alias_of(body, gateway.server_name))
        if room.alias is not None:
            check_owner(gateway.rooms, room.alias, requester)
        if room.invitees:
            gateway.limits.check("rc_invites.per_issuer", requester.user_id, count=len(room.invitees))
        session = session_of(requester)
        room_id = await gateway.room_maker.create(session, room)
        await invite_addresses(gateway, session, room_id, addresses)
    except InvalidRoomRequest as error:
        status = 403 if error.errcode == "M_THREEPID_DENIED" else 400
        raise MatrixError(str(error), errcode=error.errcode, status=status) from error
    reply: dict[str, Any] = {"room_id": room_id}
    if room.alias is not None:
        reply["room_alias"] = room.alias
    return json_reply(reply)


def _rules_of(body: dict[str, Any], default: str) -> RoomVersionRules:
    version = body.get("room_version")
    if version is None:
        version = default
    if not isinstance(version, str):
        raise BadJson("room_version must be a string")
    if version not in ROOM_VERSIONS:
        raise UnsupportedRoomVersion("Rooms of this version cannot be made here")
    return ROOM_VERSIONS[version]


def _alias_of(body: dict[str, Any], server_name: ServerName) -> RoomAlias | None:
    localpart = body.get("room_alias_name")
    if localpart is None:
        return None
    if not isinstance(localpart, str):
        raise BadJson("room_alias_name must be a string")
    if any(character in localpart for character in ":#") or any(character.isspace() for character in localpart):
        raise InvalidParam("room_alias_name must be the localpart of an alias")
    try:
        return parse_room_alias(f"#{localpart}:{server_name}")
    except InvalidIdentifier as error:
        raise InvalidParam(f"room_alias_name: {error}") from error
