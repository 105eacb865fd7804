"""Room aliases. Spec: C-S API §Room aliases."""

from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, parse_room_id, server_of
from services.gateway.dependencies import GatewayDep
from services.gateway.directory_rules import DirectoryRules
from services.gateway.path_identifiers import alias_of, room_id_of
from services.gateway.room_access import is_world_readable, require_view
from services.gateway.room_changes import session_of
from services.gateway.room_directory import check_owner, create_alias, delete_alias, resolve_alias
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.errors import Forbidden, InvalidParam
from tessera.http.replies import json_reply
from tessera.storage import aliases
from tessera.storage.resident_rooms import list_joined_servers

router = client_router()

MAX_SERVERS = 50


@router.put("/directory/room/{room_alias}")
async def set_room_alias(
    room_alias: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Make an alias for a room."""
    alias = alias_of(room_alias)
    try:
        room_id = parse_room_id(body.get("room_id"))
    except InvalidIdentifier as error:
        raise InvalidParam(f"room_id: {error}") from error
    check_owner(gateway.rooms, alias, requester)
    rules = DirectoryRules.of(gateway.settings)
    await create_alias(gateway.rooms, gateway.server_name, alias, room_id, requester.user_id, rules)
    return json_reply({})


@router.get("/directory/room/{room_alias}")
async def get_room_id_by_alias(room_alias: str, gateway: GatewayDep) -> Response:
    """Where an alias leads. Needs no access token."""
    alias = alias_of(room_alias)
    if server_of(alias) != gateway.server_name and gateway.elsewhere is not None:
        found = await gateway.elsewhere.find_alias(alias)
        return json_reply({"room_id": found.room_id, "servers": found.servers})
    bound = await resolve_alias(gateway.rooms, gateway.server_name, alias)
    async with gateway.shards.of_room(bound.room_id).reading() as tx:
        joined = await list_joined_servers(tx, bound.room_id)
    others = [server for server in joined if server != gateway.server_name]
    return json_reply({"room_id": bound.room_id, "servers": [gateway.server_name, *others][:MAX_SERVERS]})


@router.delete("/directory/room/{room_alias}")
async def delete_room_alias(room_alias: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Release an alias."""
    alias = alias_of(room_alias)
    check_owner(gateway.rooms, alias, requester)
    await delete_alias(gateway.rooms, gateway.server_name, alias, session_of(requester))
    return json_reply({})


@router.get("/rooms/{room_id}/aliases")
async def get_local_aliases(room_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The aliases that this server has for a room."""
    room = room_id_of(room_id)
    view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    if view.until is not None:
        # Who has left reads what was; the aliases are those of now.
        async with gateway.shards.of_room(room).reading() as tx:
            if not await is_world_readable(tx, room):
                raise Forbidden("You are not in this room")
    async with gateway.accounts.reading() as tx:
        bound = await aliases.list_aliases(tx, room)
    return json_reply({"aliases": [one.alias for one in bound]})
