"""Letting users of other servers leave rooms, reject invites and take knocks back.

Spec: S-S API §Leaving Rooms (Rejecting Invites).
"""

from starlette.responses import Response

from matrixcore.room_versions import ROOM_VERSIONS
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.member_events import (
    make_template,
    parse_signed,
    require_room,
    require_signatures,
    room_of,
    take_into_room,
    user_of,
)
from services.federation_in.metrics import counted
from services.federation_in.routing import V1, V2, CurrentPeer, Peer, peer_router
from tessera.http.replies import json_reply

router = peer_router()


@router.get(V1 + "/make_leave/{room_id}/{user_id}")
async def make_leave(room_id: str, user_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """A leave for the asking server to sign."""
    room, user = room_of(room_id), user_of(user_id, peer.origin)
    async with deps.shards.of_room(room).reading() as tx:
        tips = await require_room(tx, deps, room, peer)
        return json_reply(await make_template(deps, tx, room, tips, user, {"membership": "leave"}))


@router.put(V2 + "/send_leave/{room_id}/{event_id}")
async def send_leave_v2(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """Take a signed leave into the room."""
    await take_leave(deps, peer, room_id, event_id)
    return json_reply({})


@router.put(V1 + "/send_leave/{room_id}/{event_id}")
async def send_leave_v1(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The older form."""
    await take_leave(deps, peer, room_id, event_id)
    return json_reply([200, {}])


@counted("leave")
async def take_leave(deps: FederationInDeps, peer: Peer, room_id: str, event_id: str) -> None:
    """Check a signed leave and have it committed. Raises MatrixError."""
    room = room_of(room_id)
    async with deps.shards.of_room(room).reading() as tx:
        tips = await require_room(tx, deps, room, peer)
    event = parse_signed(peer, room, event_id, "leave", peer.content, ROOM_VERSIONS[tips.room_version])
    await require_signatures(deps, event)
    await take_into_room(deps, event)
