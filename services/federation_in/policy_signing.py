"""Recommending events in rooms of which this server is the policy server. Spec: S-S API §Policy Servers."""

from starlette.responses import Response

from matrixcore.events import InvalidEvent, parse_event
from matrixcore.identifiers import InvalidIdentifier, RoomId, parse_room_id
from matrixcore.policy_servers import POLICY
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.peer_access import require_peer_room
from services.federation_in.routing import CurrentPeer, peer_router
from tessera.federation.own_policy_server import NotRecommended, OwnPolicyServer
from tessera.federation.policy_servers import SIGN_PATH, RoomPolicy
from tessera.http.errors import BadJson, NotFound, Unrecognized
from tessera.http.replies import json_reply

router = peer_router()


@router.post(SIGN_PATH)
async def sign_as_policy_server(peer: CurrentPeer, deps: FederationInDep) -> Response:
    """Sign an event that is recommended."""
    if (own := deps.own_policy_server) is None:
        raise Unrecognized
    room_id = _room_of(peer.content)
    room = await require_protected(deps, own, room_id)
    async with deps.shards.of_room(room_id).reading() as tx:
        await require_peer_room(deps, tx, room_id, peer.origin)
    try:
        event = parse_event(peer.content, room.rules)
    except InvalidEvent as error:
        raise BadJson(error.reason) from None
    if (event.type, event.state_key) == POLICY:
        raise NotRecommended("Events that name policy servers are not theirs to recommend")
    return json_reply(own.answer(event, peer.origin))


async def require_protected(deps: FederationInDeps, own: OwnPolicyServer, room_id: RoomId) -> RoomPolicy:
    """A room that uses this server, with the key that it has now, as its policy server.

    Raises:
        NotFound
    """
    room = await deps.policy_servers.find(room_id)
    server = None if room is None else room.server
    if room is None or server is None or (server.name, server.public_key) != (own.name, own.key.public_key):
        raise NotFound("This server does not protect the room")
    return room


def _room_of(fields: object) -> RoomId:
    try:
        return parse_room_id(fields.get("room_id") if isinstance(fields, dict) else None)
    except InvalidIdentifier as error:
        raise BadJson(f"room_id: {error}") from None
