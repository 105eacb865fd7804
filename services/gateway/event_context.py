"""GET /context: what happened around an event. Spec: C-S API §Event context."""

from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from matrixcore.visibility import Sight
from services.gateway.dependencies import GatewayDep
from services.gateway.event_pages import list_ignored, parse_page_filter, read_page, serve_page
from services.gateway.path_identifiers import event_id_of, room_id_of
from services.gateway.room_access import require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.event_serving import serve_events
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply
from tessera.pagination_token import encode_page_token, point_before
from tessera.room_visibility import sight_of
from tessera.storage.room_reads.events import EventRow, find_event
from tessera.storage.room_reads.state import list_state

router = client_router()

DEFAULT_LIMIT = 10
MAX_LIMIT = 200


@router.get("/rooms/{room_id}/context/{event_id}")
async def get_event_context(
    room_id: str,
    event_id: str,
    requester: CurrentRequester,
    gateway: GatewayDep,
    limit: Annotated[int, Query(ge=0)] = DEFAULT_LIMIT,
    event_filter: Annotated[str | None, Query(alias="filter")] = None,
) -> Response:
    """An event, its neighbours, and the state at the last of them."""
    room, wanted = room_id_of(room_id), event_id_of(event_id)
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    page_filter = parse_page_filter(event_filter, ignored)
    limit = min(limit, MAX_LIMIT)
    now_ms = gateway.clock.now_ms()
    view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    async with gateway.shards.of_room(room).reading() as tx:
        event = await find_event(tx, room, wanted)
        if event is None or sight_of(event, view.history) is Sight.HIDDEN:
            raise NotFound("Event not found")
        before: list[EventRow] = []
        after: list[EventRow] = []
        start, end = point_before(event.order), event.order
        if limit // 2:
            page = await read_page(
                tx, view, after=None, up_to=start, backwards=True, limit=limit // 2, page_filter=page_filter
            )
            before = page.events
            start = point_before(before[-1].order) if before else start
        if limit - limit // 2:
            page = await read_page(
                tx,
                view,
                after=event.order,
                up_to=None,
                backwards=False,
                limit=limit - limit // 2,
                page_filter=page_filter,
            )
            after = page.events
            end = after[-1].order if after else end
        shown = [*before, event, *after]
        state = await list_state(tx, room, at=end)
    served = await serve_page(
        gateway.shards, gateway.accounts, view, shown, requester.device_id, now_ms, ignored=ignored
    )
    if page_filter.filter.lazy_load_members:
        senders = {row.sender for row in shown}
        state = [row for row in state if row.type != "m.room.member" or row.state_key in senders]
    state = [row for row in state if page_filter.filter.allows(row.type, row.sender)]
    reply: dict[str, Any] = {
        "start": encode_page_token(start),
        "end": encode_page_token(end),
        "events_before": served[: len(before)],
        "event": served[len(before)],
        "events_after": served[len(before) + 1 :],
        "state": serve_events(state, view.rules, view.reader(requester.device_id, now_ms), room_id=room),
    }
    return json_reply(reply)
