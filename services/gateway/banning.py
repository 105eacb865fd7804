"""Banning users and taking bans back. Spec: C-S API §Banning users in a room."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import refuse_guest
from services.gateway.room_changes import session_of
from services.gateway.room_membership import ban_user, reason_of, target_of, unban_user
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.replies import json_reply

router = client_router()


@router.post("/rooms/{room_id}/ban")
async def ban(room_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Ban a user, who is removed if joined."""
    refuse_guest(requester)
    session = session_of(requester)
    await ban_user(gateway.rooms, session, room_id_of(room_id), target_of(body), reason_of(body))
    return json_reply({})


@router.post("/rooms/{room_id}/unban")
async def unban(room_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Take a ban back."""
    refuse_guest(requester)
    session = session_of(requester)
    await unban_user(gateway.rooms, session, room_id_of(room_id), target_of(body), reason_of(body))
    return json_reply({})
