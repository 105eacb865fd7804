"""Events that relate to an event. Spec: C-S API §Relationships API."""

from typing import Annotated, Any, Literal

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.visibility import Sight
from services.gateway.dependencies import GatewayDep
from services.gateway.event_pages import list_ignored, serve_page
from services.gateway.path_identifiers import event_id_of, point_of, room_id_of
from services.gateway.room_access import require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import Forbidden, NotFound
from tessera.http.replies import json_reply
from tessera.pagination_token import encode_page_token, point_before
from tessera.room_visibility import list_visible, sight_of
from tessera.storage.room_reads.events import find_event
from tessera.storage.room_reads.relations import MAX_DEPTH, list_children

router = client_router()

DEFAULT_LIMIT = 5
MAX_LIMIT = 100

_PATH = "/rooms/{room_id}/relations/{event_id}"


@router.get(_PATH)
@router.get(_PATH + "/{rel_type}", name="get_relating_events_with_rel_type")
@router.get(_PATH + "/{rel_type}/{event_type}", name="get_relating_events_with_rel_type_and_event_type")
async def get_relating_events(
    request: Request,
    requester: CurrentRequester,
    gateway: GatewayDep,
    start: Annotated[str | None, Query(alias="from")] = None,
    stop: Annotated[str | None, Query(alias="to")] = None,
    limit: Annotated[int, Query(ge=0)] = DEFAULT_LIMIT,
    direction: Annotated[Literal["b", "f"], Query(alias="dir")] = "b",
    recurse: bool | None = None,
) -> Response:
    """The events that relate to an event: all, those in one way, or those in one way and of one type."""
    path = request.path_params
    room, target = room_id_of(path["room_id"]), event_id_of(path["event_id"])
    kinds = [path[name] for name in ("rel_type", "event_type") if name in path]
    limit = max(1, min(limit, MAX_LIMIT))
    backwards = direction == "b"
    try:
        view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    except Forbidden as error:
        raise NotFound("Event not found") from error
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    async with gateway.shards.of_room(room).reading() as tx:
        parent = await find_event(tx, room, target)
        if parent is None or sight_of(parent, view.history) is Sight.HIDDEN:
            raise NotFound("Event not found")
        begin = point_of(start, "from", view.room.partition)
        end = point_of(stop, "to", view.room.partition)
        after, up_to = (end, begin) if backwards else (begin, end)
        rows = await list_children(
            tx,
            room,
            target,
            after=after,
            up_to=view.capped(up_to),
            backwards=backwards,
            limit=limit,
            kinds=kinds,
            recursive=bool(recurse),
            ignored=ignored,
        )
    visible = list_visible(rows, view.history)
    now_ms = gateway.clock.now_ms()
    chunk = await serve_page(
        gateway.shards, gateway.accounts, view, visible, requester.device_id, now_ms, ignored=ignored
    )
    reply: dict[str, Any] = {"chunk": chunk}
    if len(rows) == limit:
        last = rows[-1].order
        reply["next_batch"] = encode_page_token(point_before(last) if backwards else last)
    if start is not None:
        reply["prev_batch"] = start
    if recurse is not None:
        reply["recursion_depth"] = MAX_DEPTH if recurse else 1
    return json_reply(reply)
