"""Reading a room: single events and state.

Spec: C-S API §Getting events for a room (api/client-server/rooms.yaml).
"""

from typing import Annotated, Literal

from fastapi import Query
from starlette.responses import Response

from matrixcore.visibility import Sight
from services.gateway.dependencies import GatewayDep
from services.gateway.event_pages import list_ignored, serve_page
from services.gateway.path_identifiers import event_id_of, room_id_of
from services.gateway.room_access import require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.event_serving import content_of, serve_event, serve_events
from tessera.http.errors import Forbidden, NotFound
from tessera.http.replies import json_bytes_reply, json_reply
from tessera.room_visibility import sight_of
from tessera.storage.room_reads.events import find_event
from tessera.storage.room_reads.state import find_state, list_state

router = client_router()


@router.get("/rooms/{room_id}/event/{event_id}")
async def get_one_room_event(room_id: str, event_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """One event that the user may see."""
    room, event = room_id_of(room_id), event_id_of(event_id)
    try:
        view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    except Forbidden as error:
        raise NotFound("Event not found") from error
    async with gateway.shards.of_room(room).reading() as tx:
        row = await find_event(tx, room, event)
    if row is None or sight_of(row, view.history) is Sight.HIDDEN:
        raise NotFound("Event not found")
    now_ms = gateway.clock.now_ms()
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    served = await serve_page(
        gateway.shards, gateway.accounts, view, [row], requester.device_id, now_ms, ignored=ignored
    )
    return json_reply(served[0])


@router.get("/rooms/{room_id}/state")
async def get_room_state(room_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The whole state: now, or as of the user's leave."""
    room = room_id_of(room_id)
    view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    async with gateway.shards.of_room(room).reading() as tx:
        events = await list_state(tx, room, at=view.until)
    reader = view.reader(requester.device_id, gateway.clock.now_ms())
    return json_reply(serve_events(events, view.rules, reader, room_id=room))


@router.get("/rooms/{room_id}/state/{event_type}")
async def get_room_state_by_type(
    room_id: str,
    event_type: str,
    requester: CurrentRequester,
    gateway: GatewayDep,
    form: Annotated[Literal["content", "event"], Query(alias="format")] = "content",
) -> Response:
    """The state of a type with the empty key."""
    return await get_room_state_with_key(room_id, event_type, "", requester, gateway, form)


@router.get("/rooms/{room_id}/state/{event_type}/{state_key:path}")
async def get_room_state_with_key(
    room_id: str,
    event_type: str,
    state_key: str,
    requester: CurrentRequester,
    gateway: GatewayDep,
    form: Annotated[Literal["content", "event"], Query(alias="format")] = "content",
) -> Response:
    """One piece of state: its content, or the event with `format=event`."""
    room = room_id_of(room_id)
    view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    async with gateway.shards.of_room(room).reading() as tx:
        event = await find_state(tx, room, event_type, state_key, at=view.until)
    if event is None:
        raise NotFound("The room has no such state")
    if form == "content":
        return json_bytes_reply(content_of(event.pdu))
    reader = view.reader(requester.device_id, gateway.clock.now_ms())
    return json_bytes_reply(serve_event(event, view.rules, reader, room_id=room))
