"""GET /rooms/{roomId}/initialSync, for previews of rooms. Spec: C-S API §Room previews."""

from typing import Annotated, Any

import orjson
from fastapi import Query
from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.event_pages import read_page, serve_page
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.event_serving import serve_events
from tessera.http.replies import json_reply
from tessera.pagination_token import encode_page_token, point_before
from tessera.storage import account_data, directory
from tessera.storage.room_reads.receipts import list_room_receipts
from tessera.storage.room_reads.state import list_state

router = client_router()

DEFAULT_LIMIT = 20
MAX_LIMIT = 200
MAX_RECEIPTS = 1_000


@router.get("/rooms/{room_id}/initialSync")
async def room_initial_sync(
    room_id: str, requester: CurrentRequester, gateway: GatewayDep, limit: Annotated[int, Query(ge=0)] = DEFAULT_LIMIT
) -> Response:
    """The state and the newest messages of a room; for who has left, as of the leave."""
    room = room_id_of(room_id)
    now_ms = gateway.clock.now_ms()
    view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    async with gateway.shards.of_room(room).snapshot() as tx:
        page = await read_page(
            tx, view, after=None, up_to=view.head, backwards=True, limit=max(1, min(limit, MAX_LIMIT))
        )
        events = page.events[::-1]
        state = await list_state(tx, room, at=view.until)
        receipts = [] if view.until is not None else await list_room_receipts(tx, room, MAX_RECEIPTS)
    chunk = await serve_page(gateway.shards, gateway.accounts, view, events, requester.device_id, now_ms)
    async with gateway.accounts.reading() as tx:
        published = await directory.is_published(tx, room)
        data = [one for one in await account_data.list_all(tx, requester.user_id) if one.room_id == room]
    start = point_before(events[0].order) if events else view.head
    reply: dict[str, Any] = {
        "room_id": room,
        "messages": {"start": encode_page_token(start), "end": encode_page_token(view.head), "chunk": chunk},
        "state": serve_events(state, view.rules, view.reader(requester.device_id, now_ms), room_id=room),
        "visibility": "public" if published else "private",
        "account_data": [
            {"type": one.type, "content": orjson.Fragment(one.content)} for one in data if one.content is not None
        ],
        "presence": [],
        "receipts": [
            {
                "type": "m.receipt",
                "room_id": room,
                "content": {one.event_id: {one.receipt_type: {one.user_id: _receipt(one.ts, one.thread_id)}}},
            }
            for one in receipts
        ],
    }
    if not view.peeking:
        reply["membership"] = view.history.current.value
    return json_reply(reply)


def _receipt(ts: int, thread_id: str) -> dict[str, Any]:
    return {"ts": ts, "thread_id": thread_id} if thread_id else {"ts": ts}
