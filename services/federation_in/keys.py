"""The keys of this server, and as a notary those of others.

Spec: S-S API §Publishing Keys, §Querying Keys Through Another Server.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from matrixcore.signing import sign_json
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.routing import peer_router
from tessera.http.bodies import read_json_object
from tessera.http.errors import BadJson, InvalidParam
from tessera.http.replies import json_reply
from tessera.storage.server_keys import list_key_documents

MAX_SERVERS = 200  # of one question
MAX_FETCHED = 20  # of these, those that are asked while the question waits
MAX_QUESTION_BYTES = 256 * 1024
# Anybody may ask, so that a flood of questions must not make us ask everybody.
FETCH_LIMIT = "tessera.federation.rc_notary"

router = peer_router()


@router.get("/_matrix/key/v2/server")
@router.get("/_matrix/key/v2/server/{key_id}")  # deprecated; the answer is the same
async def get_server_key(deps: FederationInDep) -> Response:
    """Our own keys."""
    return json_reply(await deps.federation.own_keys.document())


@router.get("/_matrix/key/v2/query/{server_name}")
@router.get("/_matrix/key/v2/query/{server_name}/{key_id}")
async def perspectives_key_query(
    server_name: str, deps: FederationInDep, minimum_valid_until_ts: str | None = None
) -> Response:
    """The keys of one server."""
    try:
        server = parse_server_name(server_name)
    except InvalidIdentifier as error:
        raise InvalidParam(f"server_name: {error}") from None
    since = deps.clock.now_ms()
    if minimum_valid_until_ts is not None:
        if not minimum_valid_until_ts.isascii() or not minimum_valid_until_ts.isdigit():
            raise InvalidParam("minimum_valid_until_ts must be a timestamp")
        since = int(minimum_valid_until_ts[:18])
    return json_reply({"server_keys": await answer_for_others(deps, {server: since})})


@router.post("/_matrix/key/v2/query")
async def bulk_perspectives_key_query(request: Request, deps: FederationInDep) -> Response:
    """The keys of several servers."""
    body = await read_json_object(request, MAX_QUESTION_BYTES)
    return json_reply({"server_keys": await answer_for_others(deps, _wanted(body, deps.clock.now_ms()))})


async def answer_for_others(deps: FederationInDeps, wanted: Mapping[ServerName, int]) -> list[dict[str, Any]]:
    """The documents of servers, each with our signature on it; those that cannot be had are missing.

    Args:
        wanted: server -> until when its keys should be valid at least, in milliseconds since the epoch.
    """
    own = deps.federation.own_keys
    others = [server for server in wanted if server != own.server_name]
    async with deps.accounts.reading() as tx:
        stored = await list_key_documents(tx, others)
    documents: dict[ServerName, Mapping[str, Any]] = {
        server: orjson.loads(one.document) for server, one in stored.items()
    }
    now = deps.clock.now_ms()
    stale: list[ServerName] = []
    for server in others:
        one = stored.get(server)
        # A notary asks again once half of a document's life is over.
        if one is None or one.valid_until_ts < wanted[server] or now > (one.fetched_ts + one.valid_until_ts) // 2:
            stale.append(server)
    documents.update(await _fetch(deps, stale[:MAX_FETCHED]))
    if own.server_name in wanted:
        documents[own.server_name] = await own.document()
    return [
        dict(document)
        if server == own.server_name
        else sign_json(document, own.server_name, own.signing_key, strict=False)
        for server, document in documents.items()
    ]


async def _fetch(deps: FederationInDeps, servers: list[ServerName]) -> dict[ServerName, Mapping[str, Any]]:
    if not servers:
        return {}
    deps.limits.check(FETCH_LIMIT, "", count=len(servers))
    answers = await asyncio.gather(*(deps.federation.key_fetcher.fetch_document(server) for server in servers))
    return {server: answer for server, answer in zip(servers, answers, strict=True) if answer is not None}


def _wanted(body: Mapping[str, Any], now_ms: int) -> dict[ServerName, int]:
    servers = body.get("server_keys")
    if not isinstance(servers, Mapping) or len(servers) > MAX_SERVERS:
        raise BadJson(f"server_keys must be an object of at most {MAX_SERVERS} servers")
    wanted: dict[ServerName, int] = {}
    for name, key_ids in servers.items():
        try:
            server = parse_server_name(name)
        except InvalidIdentifier as error:
            raise BadJson(f"server_keys: {error}") from None
        if not isinstance(key_ids, Mapping):
            raise BadJson("server_keys must be an object of objects")
        times = [one.get("minimum_valid_until_ts", now_ms) for one in key_ids.values() if isinstance(one, Mapping)]
        wanted[server] = max((time for time in times if type(time) is int), default=now_ms)
    return wanted
