"""GET /room_summary/{roomIdOrAlias}: what a room looks like from outside. Spec: C-S API §Room Summaries."""

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import RoomId, ServerName, UserId
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.joining import ServersParameter, place_of, room_of
from services.gateway.room_preview import judge_remote_rooms, load_seen_rooms
from services.gateway.routing import client_router, requester_of
from tessera.http.errors import MissingToken, NotFound
from tessera.http.replies import json_reply
from tessera.room_summaries import summary_line
from tessera.storage import user_rooms
from tessera.storage.database import Database

router = client_router()
unstable_router = client_router()

MAX_STRIPPED = 200  # events of an invite that are looked at

# What stripped state tells: (event type, key of its content, key of the summary).
_TOLD = (
    ("m.room.name", "name", "name"),
    ("m.room.topic", "topic", "topic"),
    ("m.room.avatar", "url", "avatar_url"),
    ("m.room.canonical_alias", "alias", "canonical_alias"),
    ("m.room.join_rules", "join_rule", "join_rule"),
    ("m.room.create", "type", "room_type"),
    ("m.room.create", "room_version", "room_version"),
    ("m.room.encryption", "algorithm", "encryption"),
)


@router.get("/room_summary/{room_id_or_alias}")
@unstable_router.get("/summary/{room_id_or_alias}")
@unstable_router.get("/rooms/{room_id_or_alias}/summary")
async def get_room_summary(
    room_id_or_alias: str, request: Request, gateway: GatewayDep, via: ServersParameter = None
) -> Response:
    """The summary, to whoever could join the room, ask to, or read it anyway; an access token is not needed.

    Only who has one has other servers asked.
    """
    try:
        user_id = (await requester_of(request)).user_id
    except MissingToken:
        user_id = None
    if user_id is None:
        room_id, servers = await room_of(gateway, room_id_or_alias), list[ServerName]()
    else:
        room_id, servers = await place_of(gateway, room_id_or_alias, via or ())
    return json_reply(await load_summary(gateway, room_id, user_id, servers))


async def load_summary(
    gateway: GatewayDeps, room_id: RoomId, user_id: UserId | None, via: Sequence[ServerName] = ()
) -> dict[str, Any]:
    """The room's summary with the user's membership.

    Args:
        via: servers that may know the room if this one is not in it.

    Raises:
        NotFound: also for rooms that the user may not see.
    """
    seen = await load_seen_rooms(gateway.shards, gateway.accounts, user_id, [room_id], gateway.server_name)
    room = seen.get(room_id)
    if user_id is not None and (room is None or not room.outline.is_followed):
        if (line := await _ask_for(gateway, room_id, user_id, via)) is not None:
            return line
        if room is None and (told := await _load_told(gateway.accounts, room_id, user_id)) is not None:
            return told
    if room is None or not room.is_accessible:
        raise NotFound("Room not found")
    line = summary_line(room.outline)
    return line if room.membership is None else {**line, "membership": room.membership}


async def _ask_for(
    gateway: GatewayDeps, room_id: RoomId, user_id: UserId, via: Sequence[ServerName]
) -> dict[str, Any] | None:
    """What the room's servers tell, if they do and the user may be told."""
    if gateway.spaces is None or gateway.elsewhere is None:
        return None
    servers = await gateway.elsewhere.servers_of(user_id, room_id, via)
    room = (await gateway.spaces.begin().find({room_id: servers}))[room_id]
    if room is None:
        return None
    membership, may_see = (await judge_remote_rooms(gateway.accounts, user_id, {room_id: room}))[room_id]
    return {**room.line, "membership": membership} if may_see else None


async def _load_told(accounts: Database, room_id: RoomId, user_id: UserId) -> dict[str, Any] | None:
    """What an invite to a room that is not here, or a knock at it, told of it."""
    async with accounts.reading() as tx:
        row = await user_rooms.find_room(tx, user_id, room_id)
    if row is None or row.membership not in ("invite", "knock") or row.stripped_state is None:
        return None
    contents = {event["type"]: event["content"] for event in orjson.loads(row.stripped_state)[:MAX_STRIPPED]}
    line: dict[str, Any] = {
        "room_id": room_id,
        "num_joined_members": 0,
        "world_readable": False,
        "guest_can_join": contents.get("m.room.guest_access", {}).get("guest_access") == "can_join",
        "membership": row.membership,
    }
    for event_type, key, name in _TOLD:
        if isinstance(value := contents.get(event_type, {}).get(key), str):
            line[name] = value
    return line
