"""The published room directory. Spec: C-S API §Published room directory."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, parse_server_name
from services.gateway.bridged_networks import instance_id
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.directory_rules import DirectoryRules
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_directory import set_visibility
from services.gateway.routing import CurrentRequester, client_router, requester_of
from tessera.federation.errors import PeerError, PeerRefused
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MatrixError, NotFound
from tessera.http.replies import json_reply
from tessera.published_rooms import DEFAULT_LIMIT, list_public_rooms, parse_page, parse_search
from tessera.room_summaries import refresh_summaries
from tessera.storage import directory
from tessera.storage.room_reads.summaries import list_outlines

router = client_router()

PEER_PATH = "/_matrix/federation/v1/publicRooms"
PEER_SECONDS = 20.0
MAX_PEER_BYTES = 4 << 20
MAX_NETWORK_LENGTH = 255


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
    if server is not None and server != gateway.server_name:
        query = {"limit": str(limit), "include_all_networks": "false"} | ({} if since is None else {"since": since})
        return json_reply(await _ask(gateway, server, query=query))
    return json_reply(await list_public_rooms(gateway.accounts, limit=limit, since=since))


@router.post("/publicRooms")
async def query_public_rooms(
    body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep, server: str | None = None
) -> Response:
    """The directory, searched."""
    limit, since = parse_page(body)
    search_term, room_types = parse_search(body.get("filter"))
    if server is not None and server != gateway.server_name:
        parse_network(body)
        return json_reply(await _ask(gateway, server, body=body))
    network = parse_network(body)
    if network is None and not gateway.networks.protocols:
        network = ""  # nothing but the directory, which has an index of its own
    reply = await list_public_rooms(
        gateway.accounts,
        limit=limit,
        since=since,
        search_term=search_term,
        room_types=room_types,
        network=network,
    )
    return json_reply(reply)


@router.put("/directory/list/appservice/{network_id}/{room_id}")
async def update_appservice_room_directory_visibility(
    network_id: str, room_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Publish a room in the list of another network, or take it out: for application services alone."""
    room = room_id_of(room_id)
    if requester.appservice_id is None:
        raise Forbidden("Only application services have rooms of other networks")
    visibility = body.get("visibility")
    if visibility not in ("public", "private"):
        raise InvalidParam("visibility must be 'public' or 'private'")
    if len(network_id) > MAX_NETWORK_LENGTH:
        raise InvalidParam(f"networkId is longer than {MAX_NETWORK_LENGTH} characters")
    async with gateway.shards.of_room(room).reading() as tx:
        if not await list_outlines(tx, [room]):
            raise NotFound("This room is not known here")
    await refresh_summaries(gateway.accounts, gateway.shards, [room])
    instance = instance_id(requester.appservice_id, network_id)
    async with gateway.accounts.reading() as tx:
        await directory.set_in_network(tx, instance, room, visibility == "public")
    return json_reply({})


def parse_network(body: dict[str, Any]) -> str | None:
    """Whose rooms are asked for, as `directory.list_published` takes it.

    Raises:
        BadJson, InvalidParam
    """
    everywhere, network = body.get("include_all_networks", False), body.get("third_party_instance_id")
    if not isinstance(everywhere, bool):
        raise BadJson("include_all_networks must be a boolean")
    if network is not None and not isinstance(network, str):
        raise BadJson("third_party_instance_id must be a string")
    if everywhere and network is not None:
        raise InvalidParam("third_party_instance_id cannot go with include_all_networks")
    return None if everywhere else network or ""


async def _ask(
    gateway: GatewayDeps, server: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A page of another server's directory: its own words, in bounds. Spec: S-S API §Published Room Directory."""
    try:
        parse_server_name(server)
    except InvalidIdentifier as error:
        raise InvalidParam(f"server: {error}") from error
    if gateway.peers is None:
        raise NotFound("The directory of this server cannot be reached")
    bounds: dict[str, Any] = {"timeout_s": PEER_SECONDS, "max_bytes": MAX_PEER_BYTES}
    try:
        if body is None:
            answer = await gateway.peers.get(server, PEER_PATH, query or {}, **bounds)
        else:
            answer = await gateway.peers.post(server, PEER_PATH, body, **bounds)
    except PeerRefused as error:
        raise MatrixError(error.message or "The server refused", errcode=error.errcode, status=error.status) from None
    except PeerError:
        raise MatrixError("The directory of this server cannot be reached", errcode="M_UNKNOWN", status=502) from None
    rooms = answer.get("chunk")
    page: dict[str, Any] = {"chunk": [room for room in rooms if is_line(room)] if isinstance(rooms, list) else []}
    for key, kind in (("next_batch", str), ("prev_batch", str), ("total_room_count_estimate", int)):
        if isinstance(value := answer.get(key), kind):
            page[key] = value
    return page


def is_line(room: object) -> bool:
    """Whether clients can do something with what another server lists."""
    return (
        isinstance(room, dict)
        and isinstance(room.get("room_id"), str)
        and isinstance(room.get("num_joined_members"), int)
    )
