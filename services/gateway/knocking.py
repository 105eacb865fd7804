"""Knocking on rooms. Spec: C-S API §Knocking on rooms."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.joining import ServersParameter, place_of
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.room_access import refuse_guest
from services.gateway.room_changes import session_of
from services.gateway.room_membership import knock_room, reason_of
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.replies import json_reply

router = client_router()


@router.post("/knock/{room_id_or_alias}")
async def knock(
    room_id_or_alias: str,
    body: OptionalJsonObject,
    requester: CurrentRequester,
    gateway: GatewayDep,
    via: ServersParameter = None,
    server_name: ServersParameter = None,
) -> Response:
    """Ask to be let into a room."""
    refuse_guest(requester)
    gateway.limits.check("rc_joins.local", requester.user_id)
    room_id, servers = await place_of(gateway, room_id_or_alias, via or server_name or ())
    await knock_room(gateway.rooms, session_of(requester), room_id, reason_of(body), via=servers)
    return json_reply({"room_id": room_id})
