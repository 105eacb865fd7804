"""Letting users of other servers knock on rooms. Spec: S-S API §Knocking upon a room."""

from typing import Annotated

import orjson
from fastapi import Query
from starlette.responses import Response

from matrixcore.room_versions import ROOM_VERSIONS
from services.federation_in.dependencies import FederationInDep
from services.federation_in.member_events import (
    IncompatibleRoomVersion,
    check_version,
    make_template,
    parse_signed,
    require_room,
    require_signatures,
    room_of,
    take_into_room,
    user_of,
)
from services.federation_in.metrics import counted
from services.federation_in.routing import V1, CurrentPeer, peer_router
from tessera.http.replies import json_reply
from tessera.stripped_state import list_shown_state

router = peer_router()


@router.get(V1 + "/make_knock/{room_id}/{user_id}")
async def make_knock(
    room_id: str, user_id: str, peer: CurrentPeer, deps: FederationInDep, ver: Annotated[list[str], Query()]
) -> Response:
    """A knock for the asking server to sign."""
    room, user = room_of(room_id), user_of(user_id, peer.origin)
    deps.limits.check("rc_joins_per_room", room)
    async with deps.shards.of_room(room).reading() as tx:
        tips = await require_room(tx, deps, room, peer)
        check_version(tips, ver)
        if not ROOM_VERSIONS[tips.room_version].knocking:
            raise IncompatibleRoomVersion(tips.room_version)
        return json_reply(await make_template(deps, tx, room, tips, user, {"membership": "knock"}))


@router.put(V1 + "/send_knock/{room_id}/{event_id}")
@counted("knock")
async def send_knock(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """Take a signed knock into the room, and answer what a knocker may see of it."""
    room = room_of(room_id)
    deps.limits.check("rc_joins_per_room", room)
    async with deps.shards.of_room(room).reading() as tx:
        tips = await require_room(tx, deps, room, peer)
    event = parse_signed(peer, room, event_id, "knock", peer.content, ROOM_VERSIONS[tips.room_version])
    await require_signatures(deps, event)
    await take_into_room(deps, event)
    async with deps.shards.of_room(room).reading() as tx:
        shown = await list_shown_state(tx, room)
    return json_reply({"knock_room_state": [orjson.Fragment(pdu) for pdu in shown]})
