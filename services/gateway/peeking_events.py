"""GET /events?room_id=: following a room that one may read, joined or not. Spec: C-S API §Room previews."""

import asyncio
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.event_pages import list_ignored, read_page, serve_page
from services.gateway.path_identifiers import point_of, room_id_of
from services.gateway.room_access import require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.fanout import Subscriber
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply
from tessera.pagination_token import encode_page_token
from tessera.records import OrderKey, PartitionBatch

router = client_router()

MAX_EVENTS = 100
DEFAULT_TIMEOUT_MS = 10_000
MAX_TIMEOUT_MS = 30_000


@router.get("/events")
async def peek_events(
    requester: CurrentRequester,
    gateway: GatewayDep,
    room_id: str | None = None,
    start: Annotated[str | None, Query(alias="from")] = None,
    timeout: Annotated[int, Query(ge=0)] = DEFAULT_TIMEOUT_MS,  # noqa: ASYNC109  the parameter's name in the spec
) -> Response:
    """What happened in the room after `from`; waits for it if nothing has.

    Without a room it would be the deprecated stream of all rooms, which this server does not have.
    """
    if room_id is None:
        raise NotFound("The stream of all rooms is not here any more; ask /sync, or for one room by room_id")
    room = room_id_of(room_id)
    shard = gateway.shards.of_room(room)
    woken = asyncio.Event()

    def wake(batch: PartitionBatch) -> None:
        # A batch without its records may have been about any room.
        if batch.first > batch.last or any(record.room_id == room for record in batch.records):
            woken.set()

    # The connection goes back while the request waits; a wake-up that is lost ends with the time-out.
    listening = Subscriber(on_batch=wake, wants_room=lambda room_id: room_id == room, on_reset=woken.set)
    subscription = await gateway.fanout.subscribe(listening)
    try:
        await subscription.follow_partitions([gateway.shards.partition_of(room)])
        deadline = asyncio.get_running_loop().time() + min(timeout, MAX_TIMEOUT_MS) / 1000
        begin: OrderKey | None = None
        while True:
            woken.clear()
            view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
            begin = begin or point_of(start, "from", view.room.partition) or view.head
            async with shard.reading() as tx:
                page = await read_page(tx, view, after=begin, up_to=None, backwards=False, limit=MAX_EVENTS)
            if page.events:
                break
            try:
                async with asyncio.timeout_at(deadline):
                    await woken.wait()
            except TimeoutError:
                break
    finally:
        await subscription.close()
    now_ms = gateway.clock.now_ms()
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    events = [event for event in page.events if event.state_key is not None or event.sender not in ignored]
    chunk = await serve_page(
        gateway.shards, gateway.accounts, view, events, requester.device_id, now_ms, ignored=ignored
    )
    end = page.events[-1].order if page.events else begin
    return json_reply({"start": encode_page_token(begin), "end": encode_page_token(end), "chunk": chunk})
