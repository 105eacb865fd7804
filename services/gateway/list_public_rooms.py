"""The published room directory. Spec: C-S API §Published room directory."""

from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.directory_rules import DirectoryRules
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_directory import list_public_rooms, set_visibility
from services.gateway.routing import CurrentRequester, client_router, requester_of
from tessera.http.errors import BadJson, Forbidden, InvalidParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import directory
from tessera.storage.room_reads.summaries import list_outlines

router = client_router()

DEFAULT_LIMIT = 100
MAX_SEARCH_LENGTH = 255
MAX_ROOM_TYPES = 50


@router.get("/directory/list/room/{room_id}")
async def get_room_visibility_on_directory(room_id: str, gateway: GatewayDep) -> Response:
    """Whether a room is published. Needs no access token."""
    room = room_id_of(room_id)
    async with gateway.shards.of_room(room).reading() as tx:
        if not await list_outlines(tx, [room]):
            raise NotFound("This room is not known here")
    async with gateway.accounts.reading() as tx:
        published = await directory.is_published(tx, room)
    return json_reply({"visibility": "public" if published else "private"})


@router.put("/directory/list/room/{room_id}")
async def set_room_visibility_on_directory(
    room_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Publish a room, or take it out of the directory."""
    visibility = body.get("visibility", "public")
    if visibility not in ("public", "private"):
        raise InvalidParam("visibility must be 'public' or 'private'")
    await set_visibility(
        gateway.rooms,
        room_id_of(room_id),
        requester.user_id,
        DirectoryRules.of(gateway.settings),
        published=visibility == "public",
        is_admin=requester.is_admin,
    )
    return json_reply({})


@router.get("/publicRooms")
async def get_public_rooms(
    request: Request,
    gateway: GatewayDep,
    limit: Annotated[int, Query(ge=0)] = DEFAULT_LIMIT,
    since: str | None = None,
    server: str | None = None,
) -> Response:
    """The directory, page by page. Who has no access token sees it if the operator lets everybody."""
    if not gateway.settings.allow_public_rooms_without_auth:
        await requester_of(request)
    _check_server(gateway, server)
    return json_reply(await list_public_rooms(gateway.rooms, limit=limit, since=since))


@router.post("/publicRooms")
async def query_public_rooms(
    body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep, server: str | None = None
) -> Response:
    """The directory, searched."""
    _check_server(gateway, server)
    limit, since = body.get("limit", DEFAULT_LIMIT), body.get("since")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise BadJson("limit must be an integer that is not negative")
    if since is not None and not isinstance(since, str):
        raise BadJson("since must be a string")
    if _is_of_one_network(body):
        return json_reply({"chunk": [], "total_room_count_estimate": 0})
    search_term, room_types = _parse_search(body.get("filter"))
    reply = await list_public_rooms(
        gateway.rooms, limit=limit, since=since, search_term=search_term, room_types=room_types
    )
    return json_reply(reply)


@router.put("/directory/list/appservice/{network_id}/{room_id}")
async def update_appservice_room_directory_visibility(
    network_id: str, room_id: str, requester: CurrentRequester
) -> Response:
    """Publish a room in the list of another network: for application services alone."""
    room_id_of(room_id)
    raise Forbidden("Only application services have rooms of other networks")


def _is_of_one_network(body: dict[str, Any]) -> bool:
    """Whether only the rooms of one other network are asked for, of which there are none."""
    everywhere, network = body.get("include_all_networks", False), body.get("third_party_instance_id")
    if not isinstance(everywhere, bool):
        raise BadJson("include_all_networks must be a boolean")
    if network is not None and not isinstance(network, str):
        raise BadJson("third_party_instance_id must be a string")
    if everywhere and network is not None:
        raise InvalidParam("third_party_instance_id cannot go with include_all_networks")
    return network is not None


def _parse_search(wanted: Any) -> tuple[str | None, list[str | None] | None]:
    if wanted is None:
        return None, None
    if not isinstance(wanted, dict):
        raise BadJson("filter must be an object")
    term, types = wanted.get("generic_search_term"), wanted.get("room_types")
    if term is not None and (not isinstance(term, str) or len(term) > MAX_SEARCH_LENGTH):
        raise BadJson(f"filter.generic_search_term must be a string of at most {MAX_SEARCH_LENGTH} characters")
    if types is not None and (
        not isinstance(types, list)
        or len(types) > MAX_ROOM_TYPES
        or not all(kind is None or isinstance(kind, str) for kind in types)
    ):
        raise BadJson(f"filter.room_types must be a list of at most {MAX_ROOM_TYPES} strings or nulls")
    return term, types


def _check_server(gateway: GatewayDeps, server: str | None) -> None:
    if server is not None and server != gateway.server_name:
        raise NotFound("The directory of this server cannot be reached")
