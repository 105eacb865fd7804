"""GET /rooms/{roomId}/hierarchy. Spec: C-S API §Spaces."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, RoomId, UserId, parse_room_id
from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_preview import SeenRoom, load_children, load_seen_rooms
from services.gateway.routing import CurrentRequester, client_router
from services.gateway.space_walk import Path, SpaceNode, walk
from tessera.http.errors import Forbidden, InvalidParam
from tessera.http.replies import json_reply
from tessera.room_summaries import summarise, summary_line
from tessera.space_children import ChildKey, SpaceChild
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

router = client_router()

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
MAX_DEPTH = 15
MAX_ROOMS = 20_000  # of one hierarchy, all pages together: rooms in many spaces come more than once
MAX_LOADED = 5_000  # rooms looked at for one page, most of which the user may not see
LOADED_AT_ONCE = 200
MAX_TOKEN_LENGTH = 16_000
SPACE = "m.space"


@dataclass(frozen=True, slots=True)
class Walk:
    """What is asked for, from the first page to the last; `after` and `count` say how far it has come."""

    suggested_only: bool
    max_depth: int
    after: Path | None = None
    count: int = 0


@router.get("/rooms/{room_id}/hierarchy")
async def get_space_hierarchy(
    room_id: str,
    requester: CurrentRequester,
    gateway: GatewayDep,
    suggested_only: bool = False,
    limit: Annotated[int, Query(ge=1)] = DEFAULT_LIMIT,
    max_depth: Annotated[int | None, Query(ge=0)] = None,
    from_: Annotated[str | None, Query(alias="from", max_length=MAX_TOKEN_LENGTH)] = None,
) -> Response:
    """The rooms of a space and of the spaces in it that the user may see, depth first."""
    root = room_id_of(room_id)
    wanted = Walk(suggested_only, min(MAX_DEPTH if max_depth is None else max_depth, MAX_DEPTH))
    if from_ is not None:
        wanted = _check_same(parse_token(from_), wanted, depth_given=max_depth is not None)
    page = await load_page(
        gateway.shards, gateway.accounts, requester.user_id, root, wanted, limit=min(limit, MAX_LIMIT)
    )
    return json_reply(page)


async def load_page(
    shards: RoomShards, accounts: Database, user_id: UserId, root: RoomId, wanted: Walk, *, limit: int
) -> dict[str, Any]:
    """One page. Each round of queries knows one more level of the tree, whatever the number of its rooms.

    Raises:
        Forbidden: the user may not look at the space, or it is not known here.
    """
    seen: dict[RoomId, SeenRoom] = {}
    children: dict[RoomId, list[SpaceChild]] = {}
    nodes: dict[RoomId, SpaceNode] = {}
    missing = [root, *(key.room_id for key in wanted.after or ())]
    while missing:
        found = await load_seen_rooms(shards, accounts, user_id, missing)
        if root not in nodes and (root not in found or not found[root].is_accessible):
            raise Forbidden("You are not allowed to view this space")
        seen |= found
        spaces = [room_id for room_id, room in found.items() if room.is_accessible and _is_space(room)]
        for space, all_children in (await load_children(shards, spaces) if spaces else {}).items():
            children[space] = [one for one in all_children if one.suggested or not wanted.suggested_only]
        for room_id in missing:
            accessible = room_id in found and found[room_id].is_accessible
            nodes[room_id] = SpaceNode(accessible, children.get(room_id, ()))
        at_once = max(limit + 1, LOADED_AT_ONCE)
        stretch = walk(nodes, root, wanted.after, max_depth=wanted.max_depth, limit=limit + 1, max_missing=at_once)
        missing = stretch.missing if len(nodes) < MAX_LOADED else []
    shown = stretch.shown[: min(limit, stretch.certain)]
    page: dict[str, Any] = {"rooms": [_line(seen[room_id], children) for _, room_id in shown]}
    count = wanted.count + len(shown)
    if (stretch.missing or len(stretch.shown) > limit) and count < MAX_ROOMS:
        end = shown[-1][0] if len(stretch.shown[: stretch.certain]) > limit else stretch.reached
        page["next_batch"] = encode_token(Walk(wanted.suggested_only, wanted.max_depth, end, count))
    return page


def _line(room: SeenRoom, children: Mapping[RoomId, list[SpaceChild]]) -> dict[str, Any]:
    events = [child.event for child in children.get(room.outline.room_id, ())]
    return {**summary_line(room.outline), "children_state": events}


def _is_space(room: SeenRoom) -> bool:
    return summarise(room.outline).room_type == SPACE


def encode_token(place: Walk) -> str:
    """Where the next page begins, and what the first one asked for."""
    keys = [list(key) for key in place.after or ()]
    packed = orjson.dumps([1, place.suggested_only, place.max_depth, place.count, keys])
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def parse_token(text: str) -> Walk:
    """The inverse of encode_token. Nothing in it is believed but as a place to begin at.

    Raises:
        InvalidParam
    """
    try:
        version, suggested_only, max_depth, count, keys = orjson.loads(base64.urlsafe_b64decode(text + "=="))
        after = tuple(_key_of(*key) for key in keys)
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidParam("from is not a token of this endpoint") from error
    fits = version == 1 and type(suggested_only) is bool and type(max_depth) is int and type(count) is int
    if not fits or not 0 <= max_depth <= MAX_DEPTH or len(after) > max_depth or count < 0:
        raise InvalidParam("from is not a token of this endpoint")
    return Walk(suggested_only, max_depth, after, count)


def _key_of(unordered: object, order: object, ts: object, room_id: object) -> ChildKey:
    if type(unordered) is not bool or type(order) is not str or type(ts) is not int:
        raise ValueError("no key of a child")
    try:
        return ChildKey(unordered, order, ts, parse_room_id(room_id))
    except InvalidIdentifier as error:
        raise ValueError("no key of a child") from error


def _check_same(place: Walk, asked: Walk, *, depth_given: bool) -> Walk:
    if place.suggested_only != asked.suggested_only or (depth_given and place.max_depth != asked.max_depth):
        raise InvalidParam("suggested_only and max_depth cannot change on paginated requests")
    return place
