"""GET /messages: pages of a room's history, a plain route as clients ask for many.

Spec: C-S API §Getting events for a room.
"""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import RoomId
from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.event_pages import (
    BEGINNING,
    PageFilter,
    list_ignored,
    list_member_state,
    page_reply,
    parse_page_filter,
    read_page,
    serve_page,
)
from services.gateway.path_identifiers import point_of, room_id_of
from services.gateway.room_access import require_view
from services.gateway.routing import client_routes, requester_of
from tessera.event_serving import serve_events
from tessera.http.authentication import Requester
from tessera.http.errors import InvalidParam, MissingParam
from tessera.http.replies import json_reply

DEFAULT_LIMIT = 10
MAX_LIMIT = 1_000
_LIMIT = re.compile("[0-9]{1,100}")


async def get_room_events(request: Request) -> Response:
    """A page of the room's events, and of what of its members is needed to show it."""
    requester = await requester_of(request)
    gateway = gateway_of(request)
    query = request.query_params
    room_id = room_id_of(request.path_params["room_id"])
    backwards = _parse_direction(query.get("dir"))
    limit = _parse_limit(query.get("limit"))
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    page_filter = parse_page_filter(query.get("filter"), ignored)
    limit = min(max(1, limit), MAX_LIMIT, page_filter.filter.limit_or(MAX_LIMIT) or 1)
    reply = await list_messages(
        gateway, requester, room_id, backwards, query.get("from"), query.get("to"), limit, page_filter
    )
    return json_reply(reply)


routes = client_routes("/rooms/{room_id}/messages", get_room_events, methods=["GET"])


async def list_messages(
    gateway: GatewayDeps,
    requester: Requester,
    room_id: RoomId,
    backwards: bool,
    start: str | None,
    stop: str | None,
    limit: int,
    page_filter: PageFilter,
) -> dict[str, Any]:
    """The answer of /messages.

    Args:
        start, stop: page or sync tokens; without `start` the page begins at the end that the direction comes from.
    """
    now_ms = gateway.clock.now_ms()
    view = await require_view(gateway.shards, gateway.accounts, room_id, requester.user_id)
    partition = view.room.partition
    begin = point_of(start, "from", partition) or (view.head if backwards else BEGINNING)
    end = point_of(stop, "to", partition)
    after, up_to = (end, begin) if backwards else (begin, end)
    async with gateway.shards.of_room(room_id).reading() as tx:
        page = await read_page(
            tx, view, after=after, up_to=up_to, backwards=backwards, limit=limit, page_filter=page_filter
        )
        state = None
        if page_filter.filter.lazy_load_members:
            members = await list_member_state(tx, view, page.events)
            state = serve_events(members, view.rules, view.reader(requester.device_id, now_ms), room_id=room_id)
    chunk = await serve_page(gateway.shards, gateway.accounts, view, page.events, requester.device_id, now_ms)
    following = page.end
    if not backwards and following is None and page.events:
        # The live end: what comes later can be asked for from here.
        following = page.events[-1].order
    return page_reply(begin, following, chunk, state)


def _parse_direction(text: str | None) -> bool:
    if text is None:
        raise MissingParam("dir is missing")
    if text not in ("b", "f"):
        raise InvalidParam("dir must be b or f")
    return text == "b"


def _parse_limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if _LIMIT.fullmatch(text) is None:
        raise InvalidParam("limit must be an integer that is not negative")
    return int(text)
