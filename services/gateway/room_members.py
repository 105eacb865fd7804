"""Who is in a room: GET /members and /joined_members, plain routes whose answers are sent in pieces.

Spec: C-S API §Getting events for a room (api/client-server/rooms.yaml).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from matrixcore.visibility import Membership
from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.member_lists import KEPT_FROM, MemberList
from services.gateway.member_stretches import MemberStretch, read_stretches
from services.gateway.path_identifiers import point_of, room_id_of
from services.gateway.room_access import RoomView, require_joined, require_view
from services.gateway.routing import client_routes, requester_of
from tessera.http.errors import InvalidParam
from tessera.http.replies import json_bytes_reply
from tessera.records import OrderKey
from tessera.storage.room_reads.member_lists import have_members_changed

MAX_WHOLE = 256 * 1024  # bytes of an answer that is sent in one piece

_MEMBERSHIPS = frozenset(Membership)


async def get_members_by_room(request: Request) -> Response:
    """The member events: now, at a point, or as of the user's leave."""
    requester = await requester_of(request)
    gateway = gateway_of(request)
    query = request.query_params
    room_id = room_id_of(request.path_params["room_id"])
    only, without = (_membership_of(query.get(name), name) for name in ("membership", "not_membership"))
    view = await require_view(gateway.shards, gateway.accounts, room_id, requester.user_id)
    point = view.capped(point_of(query.get("at"), "at", view.room.partition))
    stretches = await _open_list(gateway, view, point)
    return await _reply(_member_pieces(stretches, view, gateway.clock.now_ms(), only, without))


async def get_joined_members_by_room(request: Request) -> Response:
    """Names and avatars of who is joined, for members."""
    requester = await requester_of(request)
    gateway = gateway_of(request)
    room_id = room_id_of(request.path_params["room_id"])
    async with gateway.shards.of_room(room_id).reading() as tx:
        view = await require_joined(tx, room_id, requester.user_id)
    return await _reply(_joined_pieces(await _open_list(gateway, view, None)))


routes = [
    *client_routes("/rooms/{room_id}/members", get_members_by_room, methods=["GET"]),
    *client_routes("/rooms/{room_id}/joined_members", get_joined_members_by_room, methods=["GET"]),
]


def _membership_of(text: str | None, name: str) -> str | None:
    if text is not None and text not in _MEMBERSHIPS:
        raise InvalidParam(f"{name} must be one of {', '.join(sorted(_MEMBERSHIPS))}")
    return text


async def _open_list(gateway: GatewayDeps, view: RoomView, point: OrderKey | None) -> AsyncIterator[MemberStretch]:
    """The members at a point of the room's order, None for now."""
    room_id, rules = view.room.room_id, view.rules
    database = gateway.shards.of_room(room_id)
    kept = None
    if view.room.joined_count >= KEPT_FROM:
        kept = await gateway.member_lists.find(database, room_id, rules)
    if kept is not None and (point is None or await _stands_for(gateway, view, kept, point)):
        return _in_turn(kept.stretches)
    return read_stretches(database, room_id, rules, point)


async def _stands_for(gateway: GatewayDeps, view: RoomView, kept: MemberList, point: OrderKey) -> bool:
    """Whether the members now are those at an earlier point: most clients ask as of their last sync."""
    if kept.position <= point.anchor:
        return True
    async with gateway.shards.of_room(view.room.room_id).reading() as tx:
        return not await have_members_changed(tx, view.room.room_id, point)


async def _in_turn(stretches: Sequence[MemberStretch]) -> AsyncIterator[MemberStretch]:
    for stretch in stretches:
        yield stretch
        await asyncio.sleep(0)  # a fast reader must not keep everybody else waiting


async def _member_pieces(
    stretches: AsyncIterator[MemberStretch], view: RoomView, now_ms: int, only: str | None, without: str | None
) -> AsyncIterator[bytes]:
    """The answer of /members; of the two conditions either is enough."""
    before = b'{"chunk":['
    async for stretch in stretches:
        for group in stretch.groups:
            if _is_wanted(group.membership, only, without):
                yield before + group.fill(view.history, now_ms)
                before = b","
    yield b"]}" if before == b"," else before + b"]}"


def _is_wanted(membership: str | None, only: str | None, without: str | None) -> bool:
    if only is None and without is None:
        return True
    return membership is not None and (membership == only or (without is not None and membership != without))


async def _joined_pieces(stretches: AsyncIterator[MemberStretch]) -> AsyncIterator[bytes]:
    before = b'{"joined":{'
    async for stretch in stretches:
        if stretch.joined:
            yield before + stretch.joined
            before = b","
    yield b"}}" if before == b"," else before + b"}}"


async def _reply(pieces: AsyncIterator[bytes]) -> Response:
    """An answer in one piece if it is short; a long one is made while it is sent."""
    begun = b""
    async for piece in pieces:
        begun += piece
        if len(begun) > MAX_WHOLE:
            return StreamingResponse(_resume(begun, pieces), media_type="application/json")
    return json_bytes_reply(begun)


async def _resume(begun: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begun
    async for piece in rest:
        yield piece
