"""Joining rooms. Spec: C-S API §Joining rooms."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import RoomId, ServerName, server_of
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import alias_of, room_id_of
from services.gateway.room_access import require_guest_access
from services.gateway.room_changes import session_of
from services.gateway.room_directory import resolve_alias
from services.gateway.room_membership import join_room, reason_of
from services.gateway.rooms_elsewhere import parse_servers
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.authentication import Requester
from tessera.http.replies import json_reply

router = client_router()


# Both names of the parameter: `server_name` is the older one.
ServersParameter = Annotated[list[str] | None, Query()]


@router.post("/rooms/{room_id}/join")
async def join_room_by_id(
    room_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Join a room; whoever is joined already is answered the same."""
    return await _join(gateway, requester, room_id_of(room_id), [], body)


@router.post("/join/{room_id_or_alias}")
async def join_room_by_id_or_alias(
    room_id_or_alias: str,
    body: OptionalJsonObject,
    requester: CurrentRequester,
    gateway: GatewayDep,
    via: ServersParameter = None,
    server_name: ServersParameter = None,
) -> Response:
    """Join a room by its ID or by an alias, by the servers that are named if this one does not have it."""
    room_id, servers = await place_of(gateway, room_id_or_alias, via or server_name or ())
    return await _join(gateway, requester, room_id, servers, body)


async def place_of(gateway: GatewayDeps, text: str, via: Sequence[str]) -> tuple[RoomId, list[ServerName]]:
    """The room that an ID or an alias means, and the servers that may know it, those named first.

    Raises:
        InvalidParam: it is neither.
        NotFound: the alias leads nowhere.
    """
    named = parse_servers(via)
    if text.startswith("#"):
        alias = alias_of(text)
        if server_of(alias) != gateway.server_name and gateway.elsewhere is not None:
            found = await gateway.elsewhere.find_alias(alias)
            return found.room_id, [*named, *found.servers]
    return await room_of(gateway, text), named


async def room_of(gateway: GatewayDeps, text: str) -> RoomId:
    """The room that an ID or an alias means.

    Raises:
        InvalidParam: it is neither.
        NotFound: the alias leads nowhere.
    """
    if text.startswith("#"):
        return (await resolve_alias(gateway.rooms, gateway.server_name, alias_of(text))).room_id
    return room_id_of(text)


async def _join(
    gateway: GatewayDeps, requester: Requester, room_id: RoomId, servers: Sequence[ServerName], body: dict[str, Any]
) -> Response:
    gateway.limits.check("rc_joins.local", requester.user_id)
    gateway.limits.check("rc_joins_per_room", room_id)
    if requester.is_guest:
        async with gateway.shards.of_room(room_id).reading() as tx:
            await require_guest_access(tx, room_id)
    session = session_of(requester)
    await join_room(gateway.rooms, session, room_id, reason_of(body), via=servers)
    return json_reply({"room_id": room_id})
