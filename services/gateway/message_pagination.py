"""GET /messages: pages of a room's history. Spec: C-S API §Getting events for a room."""

from typing import Annotated, Any, Literal

from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import RoomId
from services.gateway.dependencies import GatewayDep, GatewayDeps
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
from services.gateway.routing import CurrentRequester, client_router
from tessera.event_serving import serve_events
from tessera.http.authentication import Requester
from tessera.http.replies import json_reply

router = client_router()

DEFAULT_LIMIT = 10
MAX_LIMIT = 1_000


@router.get("/rooms/{room_id}/messages")
async def get_room_events(
    room_id: str,
    requester: CurrentRequester,
    gateway: GatewayDep,
    direction: Annotated[Literal["b", "f"], Query(alias="dir")],
    start: Annotated[str | None, Query(alias="from")] = None,
    stop: Annotated[str | None, Query(alias="to")] = None,
    limit: Annotated[int, Query(ge=0)] = DEFAULT_LIMIT,
    event_filter: Annotated[str | None, Query(alias="filter")] = None,
) -> Response:
    """A page of the room's events, and of what of its members is needed to show it."""
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    page_filter = parse_page_filter(event_filter, ignored)
    limit = min(max(1, limit), MAX_LIMIT, page_filter.filter.limit_or(MAX_LIMIT) or 1)
    reply = await list_messages(
        gateway, requester, room_id_of(room_id), direction == "b", start, stop, limit, page_filter
    )
    return json_reply(reply)


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
