"""The threads of a room, most recently active first. Spec: C-S API §Threading, GET /rooms/{roomId}/threads."""

from typing import Annotated, Any, Literal

from fastapi import Query
from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.event_pages import list_ignored, serve_page
from services.gateway.path_identifiers import point_of, room_id_of
from services.gateway.room_access import require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.erased_events import redacted_row
from tessera.http.replies import json_reply
from tessera.pagination_token import encode_page_token
from tessera.records import OrderKey
from tessera.room_visibility import list_visible
from tessera.storage.room_reads.relations import list_thread_roots

router = client_router()

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


@router.get("/rooms/{room_id}/threads")
async def get_thread_roots(
    room_id: str,
    requester: CurrentRequester,
    gateway: GatewayDep,
    include: Literal["all", "participated"] = "all",
    limit: Annotated[int, Query(ge=1)] = DEFAULT_LIMIT,
    start: Annotated[str | None, Query(alias="from")] = None,
) -> Response:
    """The roots of threads that the user may see, with what is aggregated at them."""
    room = room_id_of(room_id)
    limit = min(limit, MAX_LIMIT)
    view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    begin = view.capped(point_of(start, "from", view.room.partition)) or view.head
    async with gateway.shards.of_room(room).reading() as tx:
        threads = await list_thread_roots(
            tx, room, up_to=begin, participant=requester.user_id if include == "participated" else None, limit=limit
        )
    visible = list_visible([root for _, root in threads], view.history)
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    # A client that gathers threads itself would know of such a root only that it is there.
    roots = [redacted_row(root, view.rules, room) if root.sender in ignored else root for root in visible]
    now_ms = gateway.clock.now_ms()
    chunk = await serve_page(
        gateway.shards, gateway.accounts, view, roots, requester.device_id, now_ms, ignored=ignored
    )
    reply: dict[str, Any] = {"chunk": chunk}
    if len(threads) == limit:
        # Replies have anchors of their own, so that the next page begins just below the last thread's latest.
        reply["next_batch"] = encode_page_token(OrderKey(threads[-1][0] - 1))
    return json_reply(reply)
