"""Our published directory, for other servers. Spec: S-S API §Published Room Directory."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.routing import V1, CurrentPeer, peer_router
from tessera.http.errors import Forbidden
from tessera.http.replies import json_reply
from tessera.published_rooms import DEFAULT_LIMIT, list_public_rooms, parse_page, parse_search

router = peer_router()


@router.get(V1 + "/publicRooms")
async def get_public_rooms(
    _peer: CurrentPeer,
    deps: FederationInDep,
    limit: Annotated[int, Query(ge=0)] = DEFAULT_LIMIT,
    since: str | None = None,
) -> Response:
    """The directory, page by page."""
    _require_open(deps)
    return json_reply(await list_public_rooms(deps.accounts, limit=limit, since=since))


@router.post(V1 + "/publicRooms")
async def query_public_rooms(peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The directory, searched."""
    _require_open(deps)
    body = dict(peer.content)
    limit, since = parse_page(body)
    term, types = parse_search(body.get("filter"))
    reply = await list_public_rooms(deps.accounts, limit=limit, since=since, search_term=term, room_types=types)
    return json_reply(reply)


def _require_open(deps: FederationInDeps) -> None:
    if not deps.settings.allow_public_rooms_over_federation:
        raise Forbidden("This server does not show its directory to other servers")
