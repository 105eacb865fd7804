"""Leaving and forgetting rooms. Spec: C-S API §Leaving rooms."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_changes import session_of
from services.gateway.room_membership import forget_room, leave_room, reason_of
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.replies import json_reply

router = client_router()


@router.post("/rooms/{room_id}/leave")
async def leave(room_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Leave a room, or reject its invite."""
    session = session_of(requester)
    await leave_room(gateway.rooms, session, room_id_of(room_id), reason_of(body))
    return json_reply({})


@router.post("/rooms/{room_id}/forget")
async def forget(room_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Forget a room that the user has left."""
    await forget_room(gateway.rooms, requester.user_id, room_id_of(room_id))
    return json_reply({})
