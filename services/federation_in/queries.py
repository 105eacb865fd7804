"""What other servers ask of our users and aliases. Spec: S-S API §Querying for information."""

from typing import Annotated, Any

import orjson
from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, RoomAlias, parse_room_alias, parse_user_id, server_of
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.routing import V1, CurrentPeer, peer_router
from tessera.http.errors import InvalidParam, NotFound, Unrecognized
from tessera.http.replies import json_reply
from tessera.storage import aliases, profiles
from tessera.storage.aliases import BoundAlias
from tessera.storage.resident_rooms import list_joined_servers

router = peer_router()

MAX_SERVERS = 50


@router.get(V1 + "/query/profile")
async def query_profile(
    _peer: CurrentPeer, deps: FederationInDep, user_id: str, field: Annotated[str | None, Query(max_length=255)] = None
) -> Response:
    """The profile of one of our users, or one field of it."""
    try:
        parsed = parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from None
    if server_of(parsed) != deps.server_name:
        raise InvalidParam("The user is not of this server")
    if deps.bridges is not None:
        await deps.bridges.make_users([parsed])
    async with deps.accounts.reading() as tx:
        found = (await profiles.list_profiles(tx, [parsed])).get(parsed)
    if found is None:
        raise NotFound("There is no such user")
    fields: dict[str, Any] = {} if found.custom is None else orjson.loads(found.custom)
    for key, value in (("displayname", found.displayname), ("avatar_url", found.avatar_url)):
        if value is not None:
            fields[key] = value
    if field is None:
        return json_reply(fields)
    if field not in fields and field not in ("displayname", "avatar_url"):
        raise NotFound("The profile has no such field")
    return json_reply({field: fields[field]} if field in fields else {})


@router.get(V1 + "/query/directory")
async def query_directory(_peer: CurrentPeer, deps: FederationInDep, room_alias: str) -> Response:
    """Where one of our aliases leads, and who is there."""
    try:
        alias = parse_room_alias(room_alias)
    except InvalidIdentifier as error:
        raise InvalidParam(f"room_alias: {error}") from None
    bound = await _find_alias(deps, alias)
    if bound is None and deps.bridges is not None and await deps.bridges.make_alias(alias):
        bound = await _find_alias(deps, alias)
    if bound is None:
        raise NotFound(f"Room alias {alias} not found")
    async with deps.shards.of_room(bound.room_id).reading() as tx:
        joined = await list_joined_servers(tx, bound.room_id)
    others = [server for server in joined if server != deps.server_name]
    return json_reply({"room_id": bound.room_id, "servers": [deps.server_name, *others][:MAX_SERVERS]})


async def _find_alias(deps: FederationInDeps, alias: RoomAlias) -> BoundAlias | None:
    if server_of(alias) != deps.server_name:
        return None
    async with deps.accounts.reading() as tx:
        return await aliases.find_alias(tx, alias)


@router.get(V1 + "/query/{query_type}")
async def query_info(query_type: str, _peer: CurrentPeer) -> Response:
    """No other kind of question is known."""
    raise Unrecognized(f"Unknown query: {query_type[:50]}")
