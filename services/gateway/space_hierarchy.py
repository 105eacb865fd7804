"""GET /rooms/{roomId}/hierarchy. Spec: C-S API §Spaces."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, UserId, parse_room_id
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_preview import SeenRoom, judge_remote_rooms, load_children, load_seen_rooms
from services.gateway.rooms_elsewhere import RoomsElsewhere, parse_servers
from services.gateway.routing import CurrentRequester, client_router
from services.gateway.space_walk import Path, SpaceNode, walk
from services.gateway.spaces_elsewhere import SPACE, Inquiry, RemoteRoom
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


@dataclass(frozen=True, slots=True)
class Walk:
    """What is asked for, from the first page to the last; `after` and `count` say how far it has come."""

    suggested_only: bool
    max_depth: int
    after: Path | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class RemoteTree:
    """The way to rooms that only other servers know, for one user's page."""

    server_name: ServerName
    rooms: RoomsElsewhere
    inquiry: Inquiry
    user_id: UserId

    async def servers_of(self, root: RoomId) -> Sequence[ServerName]:
        """Who may know the space itself, which nobody has named a server for."""
        return await self.rooms.servers_of(self.user_id, root, ())


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
    elsewhere = _elsewhere(gateway, requester.user_id, wanted)
    page = await load_page(
        gateway.shards,
        gateway.accounts,
        requester.user_id,
        root,
        wanted,
        limit=min(limit, MAX_LIMIT),
        elsewhere=elsewhere,
    )
    return json_reply(page)


def _elsewhere(gateway: GatewayDeps, user_id: UserId, wanted: Walk) -> RemoteTree | None:
    if gateway.spaces is None or gateway.elsewhere is None:
        return None
    inquiry = gateway.spaces.begin(suggested_only=wanted.suggested_only)
    return RemoteTree(gateway.server_name, gateway.elsewhere, inquiry, user_id)


class _Tree:
    """What is known of the rooms under a space while one page is made."""

    def __init__(
        self,
        shards: RoomShards,
        accounts: Database,
        user_id: UserId,
        root: RoomId,
        elsewhere: RemoteTree | None,
        *,
        suggested_only: bool,
    ) -> None:
        self.nodes: dict[RoomId, SpaceNode] = {}
        self._lines: dict[RoomId, dict[str, Any]] = {}
        self._shards = shards
        self._accounts = accounts
        self._user_id = user_id
        self._root = root
        self._elsewhere = elsewhere
        self._suggested_only = suggested_only
        self._old: dict[RoomId, SeenRoom | None] = {}  # looked for here: not known, or not followed any more
        self._via: dict[RoomId, Sequence[str]] = {}

    async def learn(self, room_ids: Sequence[RoomId]) -> bool:
        """Look for rooms here, and then elsewhere. False if some could not be looked for, as enough was asked."""
        new = [room_id for room_id in room_ids if room_id not in self._old]
        server_name = None if self._elsewhere is None else self._elsewhere.server_name
        found = await load_seen_rooms(self._shards, self._accounts, self._user_id, new, server_name) if new else {}
        await self._place_own([room for room in found.values() if room.outline.is_followed])
        self._old |= {room_id: found.get(room_id) for room_id in new}
        if self._elsewhere is None:
            await self._place_old([room_id for room_id in room_ids if room_id not in self.nodes])
            return True
        missing = [room_id for room_id in room_ids if room_id not in self.nodes]
        if self._root in missing and self._root not in self._via:
            self._via[self._root] = await self._elsewhere.servers_of(self._root)
        # Of a room on the way to where the last page ended the servers are known when its space is.
        wanted = {room_id: parse_servers(self._via[room_id]) for room_id in missing if room_id in self._via}
        told = await self._elsewhere.inquiry.find(wanted) if wanted else {}
        await self._place_remote({room_id: room for room_id, room in told.items() if room is not None})
        await self._place_old([room_id for room_id, room in told.items() if room is None])
        return len(told) == len(wanted)

    def line(self, room_id: RoomId) -> dict[str, Any]:
        """A room that is shown, with its children."""
        events = [child.event for child in self.nodes[room_id].children]
        return {**self._lines[room_id], "children_state": events}

    async def _place_own(self, rooms: Sequence[SeenRoom]) -> None:
        spaces = [room.outline.room_id for room in rooms if room.is_accessible and _is_space(room)]
        children = await load_children(self._shards, spaces) if spaces else {}
        for room in rooms:
            room_id = room.outline.room_id
            self._place(room_id, room.is_accessible, summary_line(room.outline), children.get(room_id, ()))

    async def _place_old(self, room_ids: Sequence[RoomId]) -> None:
        await self._place_own([old for room_id in room_ids if (old := self._old[room_id]) is not None])
        for room_id in room_ids:
            self.nodes.setdefault(room_id, SpaceNode(is_shown=False))

    async def _place_remote(self, rooms: Mapping[RoomId, RemoteRoom]) -> None:
        for room_id, (_, may_see) in (await judge_remote_rooms(self._accounts, self._user_id, rooms)).items():
            room = rooms[room_id]
            self._place(room_id, may_see, room.line, room.children if room.is_space else ())

    def _place(self, room_id: RoomId, is_shown: bool, line: dict[str, Any], children: Sequence[SpaceChild]) -> None:
        counting = [child for child in children if child.suggested or not self._suggested_only] if is_shown else []
        self.nodes[room_id], self._lines[room_id] = SpaceNode(is_shown, counting), line
        for child in counting:
            self._via.setdefault(child.room_id, child.via)


async def load_page(
    shards: RoomShards,
    accounts: Database,
    user_id: UserId,
    root: RoomId,
    wanted: Walk,
    *,
    limit: int,
    elsewhere: RemoteTree | None = None,
) -> dict[str, Any]:
    """One page. Each round of queries knows one more level of the tree, whatever the number of its rooms.

    Raises:
        Forbidden: the user may not look at the space, or it is known neither here nor where it could be asked for.
    """
    tree = _Tree(shards, accounts, user_id, root, elsewhere, suggested_only=wanted.suggested_only)
    missing = [root, *(key.room_id for key in wanted.after or ())]
    while missing:
        all_learnt = await tree.learn(missing)
        if root not in tree.nodes or not tree.nodes[root].is_shown:
            raise Forbidden("You are not allowed to view this space")
        at_once = max(limit + 1, LOADED_AT_ONCE)
        stretch = walk(tree.nodes, root, wanted.after, max_depth=wanted.max_depth, limit=limit + 1, max_missing=at_once)
        missing = stretch.missing if all_learnt and len(tree.nodes) < MAX_LOADED else []
    shown = stretch.shown[: min(limit, stretch.certain)]
    page: dict[str, Any] = {"rooms": [tree.line(room_id) for _, room_id in shown]}
    count = wanted.count + len(shown)
    if (stretch.missing or len(stretch.shown) > limit) and count < MAX_ROOMS:
        end = shown[-1][0] if len(stretch.shown[: stretch.certain]) > limit else stretch.reached
        page["next_batch"] = encode_token(Walk(wanted.suggested_only, wanted.max_depth, end, count))
    return page


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
