"""Inviting users by their ID or their e-mail address. Spec: C-S API §Room membership, §Third-party invites."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import refuse_guest
from services.gateway.room_changes import session_of
from services.gateway.room_membership import invite_user, reason_of, target_of
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from services.gateway.third_party_invites import invite_address, names_address, parse_address_invite
from tessera.http.replies import json_reply

router = client_router()


@router.post("/rooms/{room_id}/invite")
async def invite(room_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Invite a user, or whoever an address belongs to."""
    refuse_guest(requester)
    room = room_id_of(room_id)
    if names_address(body):
        address = parse_address_invite(gateway, body)
        await invite_address(gateway, session_of(requester), room, address, reason_of(body))
        return json_reply({})
    target = target_of(body)
    gateway.limits.check("rc_invites.per_issuer", requester.user_id)
    gateway.limits.check("rc_invites.per_room", room)
    gateway.limits.check("rc_invites.per_user", target)
    session = session_of(requester)
    await invite_user(gateway.rooms, session, room, target, reason_of(body))
    return json_reply({})
