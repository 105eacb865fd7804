"""One level of a space, as another server may see it. Spec: S-S API §Spaces."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import RoomId, ServerName
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.member_events import room_of
from services.federation_in.routing import V1, CurrentPeer, peer_router
from tessera.federation.acl import is_server_allowed
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply
from tessera.room_summaries import allowed_rooms, load_outlines, summarise, summary_line
from tessera.space_children import MAX_CHILDREN, SpaceChild, sort_children
from tessera.storage import peer_rooms
from tessera.storage.peer_rooms import PeerRoom
from tessera.storage.room_reads.space_children import ChildEvent, list_children
from tessera.storage.room_reads.summaries import RoomOutline

router = peer_router()

MAX_SHOWN = 100  # children that are told of in one answer
OPEN = frozenset(("public", "knock", "knock_restricted"))
RESTRICTED = frozenset(("restricted", "knock_restricted"))


@router.get(V1 + "/hierarchy/{room_id}")
async def get_space_hierarchy(
    room_id: str, peer: CurrentPeer, deps: FederationInDep, suggested_only: bool = False
) -> Response:
    """A room and the rooms in it that this server knows; those that the asking server may not see by name only."""
    root = room_of(room_id)
    seen = await _look_at(deps, peer.origin, [root])
    if seen.get(root) is None:
        raise NotFound("The room is not known here, or not for you to see")
    every = (await _children_of(deps, [root])).get(root, ())
    children = [child for child in every if child.suggested or not suggested_only]
    shown = children[:MAX_SHOWN]
    rooms = await _look_at(deps, peer.origin, [child.room_id for child in shown])
    # A space among the children is told with its own children, so that the asker knows where to go on.
    spaces = [name for name, outline in rooms.items() if outline is not None and summarise(outline).room_type]
    below = await _children_of(deps, spaces)
    reply = {
        "room": _line(seen[root], children),
        "children": [_line(outline, below.get(name, ())) for name, outline in rooms.items() if outline is not None],
        "inaccessible_children": [name for name, outline in rooms.items() if outline is None],
    }
    return json_reply(reply)


async def _look_at(
    deps: FederationInDeps, origin: ServerName, room_ids: Sequence[RoomId]
) -> dict[RoomId, RoomOutline | None]:
    """Those of the rooms that this server is in; None for what the other server may not see."""
    outlines = {outline.room_id: outline for outline in await load_outlines(deps.shards, room_ids)}
    allowed = {name for outline in outlines.values() for name in allowed_rooms(outline)}
    rooms: dict[RoomId, PeerRoom] = {}
    for shard, names in deps.shards.group_rooms(dict.fromkeys([*outlines, *allowed])).items():
        async with deps.shards.databases[shard].reading() as tx:
            rooms |= await peer_rooms.list_peer_rooms(tx, names, deps.server_name, origin)
    return {
        room_id: outline if _may_see(origin, outline, rooms) else None
        for room_id, outline in outlines.items()
        if room_id in rooms and rooms[room_id].is_joined
    }


def _may_see(origin: ServerName, outline: RoomOutline, rooms: Mapping[RoomId, PeerRoom]) -> bool:
    """Whether anybody of the other server may be in the room, or come into it."""
    room = rooms[outline.room_id]
    if not is_server_allowed(room.acl, origin):
        return False
    summary = summarise(outline)
    if room.has_peer or summary.world_readable or summary.join_rule in OPEN:
        return True
    if summary.join_rule not in RESTRICTED:
        return False
    return any(name in rooms and rooms[name].has_peer for name in allowed_rooms(outline))


async def _children_of(deps: FederationInDeps, room_ids: Sequence[RoomId]) -> Mapping[RoomId, Sequence[SpaceChild]]:
    """The children of spaces in their order: one query a shard."""
    events: list[ChildEvent] = []
    for shard, names in deps.shards.group_rooms(room_ids).items():
        async with deps.shards.databases[shard].reading() as tx:
            events += await list_children(tx, names, MAX_CHILDREN)
    return sort_children(events)


def _line(outline: RoomOutline | None, children: Sequence[SpaceChild]) -> dict[str, Any]:
    assert outline is not None
    return {**summary_line(outline), "children_state": [child.event for child in children[:MAX_SHOWN]]}
