"""The rooms that the user shares with somebody. Spec: C-S API §Mutual Rooms."""

import asyncio
import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, RoomId, UserId, parse_user_id
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import InvalidParam, MissingParam
from tessera.http.replies import json_reply
from tessera.storage import user_rooms
from tessera.storage.room_reads.rooms import list_memberships_of

router = client_router()
unstable_router = client_router()

PAGE = 500
MAX_TOKEN_LENGTH = 400


@router.get("/mutual_rooms")
async def get_mutual_rooms(
    requester: CurrentRequester,
    gateway: GatewayDep,
    user_id: str | None = None,
    start: Annotated[str | None, Query(alias="from")] = None,
) -> Response:
    """A page of the rooms that both are joined to, by ID."""
    return json_reply(await _page(gateway, requester.user_id, user_id, start, "next_batch"))


@unstable_router.get("/user/mutual_rooms", name="get_mutual_rooms")
async def get_mutual_rooms_by_their_old_name(
    requester: CurrentRequester,
    gateway: GatewayDep,
    user_id: str | None = None,
    batch_token: str | None = None,
) -> Response:
    """The same as MSC2666 had it."""
    return json_reply(await _page(gateway, requester.user_id, user_id, batch_token, "next_batch_token"))


async def _page(
    gateway: GatewayDeps, requester: UserId, user_id: str | None, start: str | None, next_name: str
) -> dict[str, Any]:
    if user_id is None:
        raise MissingParam("user_id is missing")
    try:
        other = parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from error
    if other == requester:
        raise InvalidParam("user_id is the user's own")
    after = "" if start is None else _parse_token(start)
    mutual = await list_mutual_rooms(gateway, requester, other)
    page = [room_id for room_id in mutual if room_id > after]
    reply: dict[str, Any] = {"joined": page[:PAGE], "count": len(mutual)}
    if len(page) > PAGE:
        reply[next_name] = urlsafe_b64encode(page[PAGE - 1].encode()).decode()
    return reply


async def list_mutual_rooms(gateway: GatewayDeps, requester: UserId, other: UserId) -> list[RoomId]:
    """The rooms that both are joined to, in the order of their IDs; one statement a shard."""
    async with gateway.accounts.reading() as tx:
        own = await user_rooms.list_rooms(tx, requester, ["join"])

    async def of_shard(name: str, rooms: list[RoomId]) -> list[RoomId]:
        async with gateway.shards.databases[name].reading() as tx:
            memberships = await list_memberships_of(tx, rooms, other)
        return [room_id for room_id, membership in memberships.items() if membership == "join"]

    groups = gateway.shards.group_rooms(room.room_id for room in own)
    found = await asyncio.gather(*(of_shard(name, rooms) for name, rooms in groups.items()))
    return sorted(room_id for rooms in found for room_id in rooms)


def _parse_token(text: str) -> str:
    try:
        token = urlsafe_b64decode(text.encode("ascii")).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidParam("from is not a token of this server") from error
    if len(text) > MAX_TOKEN_LENGTH or not token.startswith("!"):
        raise InvalidParam("from is not a token of this server")
    return token
