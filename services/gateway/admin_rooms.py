"""What administrators see of rooms, with the paths and fields of Synapse's admin API, and the server's version."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import RoomId, UserId
from services.gateway.admin_listing import PagingQuery
from services.gateway.administration import ADMIN_V1, AdminRequester
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.path_identifiers import room_id_of
from services.gateway.routing import absolute_router
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply
from tessera.room_summaries import load_outlines
from tessera.storage import account_listing
from tessera.storage.account_listing import ROOM_ORDERS, ListedRoom
from tessera.storage.room_reads.creators import list_creators
from tessera.storage.room_reads.members import list_joined_users
from tessera.storage.room_reads.summaries import RoomOutline

admin_router = absolute_router()

_VERSION = version("tessera")
_BY_SIZE = frozenset(["joined_members", "version"])


async def get_server_version(_request: Request) -> Response:
    """Which software answers; for everybody, as in Synapse."""
    return json_reply({"server_version": f"Tessera {_VERSION}"})


routes = [Route(f"{ADMIN_V1}/server_version", get_server_version, methods=["GET"])]


@admin_router.get(f"{ADMIN_V1}/rooms")
async def list_rooms(
    admin: AdminRequester, gateway: GatewayDep, paging: PagingQuery, search_term: str | None = None
) -> Response:
    """A page of the rooms that this server knows."""
    order = paging.order(ROOM_ORDERS, "name")
    descending = order in _BY_SIZE if paging.descending is None else paging.descending != (order in _BY_SIZE)
    async with gateway.accounts.reading() as tx:
        found, total = await account_listing.list_rooms(
            tx, search_term, order=order, descending=descending, limit=paging.limit, offset=paging.start
        )
    room_ids = [room.room_id for room in found]
    outlines = {one.room_id: one for one in await load_outlines(gateway.shards, room_ids)}
    creators = await _load_creators(gateway, room_ids)
    rooms = [
        room_json(room, outlines[room.room_id], creators.get(room.room_id))
        for room in found
        if room.room_id in outlines
    ]
    reply: dict[str, Any] = {"rooms": rooms, "offset": paging.start, "total_rooms": total}
    if paging.start + len(found) < total:
        reply["next_batch"] = paging.start + len(found)
    if paging.start > 0:
        reply["prev_batch"] = max(0, paging.start - paging.limit)
    return json_reply(reply)


@admin_router.get(f"{ADMIN_V1}/rooms/{{room_id}}")
async def get_room(room_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """One room."""
    room, outline = await _load(gateway, room_id_of(room_id))
    creators = await _load_creators(gateway, [room.room_id])
    topic = outline.contents.get("m.room.topic", {}).get("topic")
    avatar = outline.contents.get("m.room.avatar", {}).get("url")
    return json_reply(
        {**room_json(room, outline, creators.get(room.room_id)), "topic": topic, "avatar": avatar, "forgotten": False}
    )


@admin_router.get(f"{ADMIN_V1}/rooms/{{room_id}}/members")
async def get_room_members(room_id: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """Who is joined to a room, from wherever they are."""
    room = room_id_of(room_id)
    await _load(gateway, room)
    async with gateway.shards.of_room(room).reading() as tx:
        joined = await list_joined_users(tx, room)
    return json_reply({"members": joined, "total": len(joined)})


async def _load(gateway: GatewayDeps, room_id: RoomId) -> tuple[ListedRoom, RoomOutline]:
    outlines = await load_outlines(gateway.shards, [room_id])
    if not outlines:
        raise NotFound("Room not found")
    async with gateway.accounts.reading() as tx:
        return await account_listing.find_room(tx, room_id), outlines[0]


async def _load_creators(gateway: GatewayDeps, room_ids: Sequence[RoomId]) -> dict[RoomId, UserId]:
    """The creators of rooms, with one query for each shard."""
    creators: dict[RoomId, UserId] = {}
    for name, group in gateway.shards.group_rooms(room_ids).items():
        async with gateway.shards.databases[name].reading() as tx:
            creators |= await list_creators(tx, group)
    return creators


def room_json(room: ListedRoom, outline: RoomOutline, creator: UserId | None) -> dict[str, Any]:
    """A line of the list of rooms."""

    def said(event_type: str, field: str) -> Any:
        return outline.contents.get(event_type, {}).get(field)

    return {
        "room_id": room.room_id,
        "name": said("m.room.name", "name"),
        "canonical_alias": said("m.room.canonical_alias", "alias"),
        "joined_members": outline.joined_count,
        "joined_local_members": room.joined_local_members,
        "version": outline.room_version,
        "creator": creator,
        "encryption": said("m.room.encryption", "algorithm"),
        "federatable": said("m.room.create", "m.federate") is not False,
        "public": room.published,
        "join_rules": said("m.room.join_rules", "join_rule"),
        "guest_access": said("m.room.guest_access", "guest_access"),
        "history_visibility": said("m.room.history_visibility", "history_visibility"),
        "room_type": said("m.room.create", "type"),
    }
