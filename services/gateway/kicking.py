"""Kicking members. Spec: C-S API §Room membership."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import refuse_guest
from services.gateway.room_changes import session_of
from services.gateway.room_membership import kick_user, reason_of, target_of
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.replies import json_reply

router = client_router()


@router.post("/rooms/{room_id}/kick")
async def kick(room_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Remove a member from the room."""
    refuse_guest(requester)
    session = session_of(requester)
    await kick_user(gateway.rooms, session, room_id_of(room_id), target_of(body), reason_of(body))
    return json_reply({})
