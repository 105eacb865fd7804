"""Inviting users by their ID. Spec: C-S API §Room membership; invites by e-mail are refused."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import refuse_guest
from services.gateway.room_changes import session_of
from services.gateway.room_membership import invite_user, reason_of, target_of
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.errors import MatrixError
from tessera.http.replies import json_reply

router = client_router()


@router.post("/rooms/{room_id}/invite")
async def invite(room_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Invite a user."""
    refuse_guest(requester)
    if "user_id" not in body and "medium" in body:
        raise MatrixError(
            "This server does not invite by e-mail or telephone number", errcode="M_THREEPID_DENIED", status=403
        )
    room = room_id_of(room_id)
    target = target_of(body)
    gateway.limits.check("rc_invites.per_issuer", requester.user_id)
    gateway.limits.check("rc_invites.per_room", room)
    gateway.limits.check("rc_invites.per_user", target)
    session = session_of(requester)
    await invite_user(gateway.rooms, session, room, target, reason_of(body))
    return json_reply({})
