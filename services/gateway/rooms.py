"""Reading a room: single events, state, members.

Spec: C-S API §Getting events for a room (api/client-server/rooms.yaml).
"""

from typing import Annotated, Literal

import orjson
from fastapi import Query
from starlette.responses import Response

from matrixcore.visibility import Sight
from services.gateway.dependencies import GatewayDep
from services.gateway.event_pages import list_ignored, serve_page
from services.gateway.path_identifiers import event_id_of, point_of, room_id_of
from services.gateway.room_access import require_joined, require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.event_serving import content_of, serve_event, serve_events
from tessera.http.errors import Forbidden, NotFound
from tessera.http.replies import json_bytes_reply, json_reply
from tessera.room_visibility import sight_of
from tessera.storage.room_reads.events import find_event
from tessera.storage.room_reads.members import list_joined_members, list_members
from tessera.storage.room_reads.state import find_state, list_state

router = client_router()

MembershipName = Literal["join", "invite", "knock", "leave", "ban"]


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


@router.get("/rooms/{room_id}/members")
async def get_members_by_room(
    room_id: str,
    requester: CurrentRequester,
    gateway: GatewayDep,
    at: str | None = None,
    membership: MembershipName | None = None,
    not_membership: MembershipName | None = None,
) -> Response:
    """The member events: now, at a point, or as of the user's leave."""
    room = room_id_of(room_id)
    view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    async with gateway.shards.of_room(room).reading() as tx:
        point = view.capped(point_of(at, "at", view.room.partition))
        events = await list_members(tx, room, at=point, membership=membership, not_membership=not_membership)
    reader = view.reader(requester.device_id, gateway.clock.now_ms())
    return json_reply({"chunk": serve_events(events, view.rules, reader, room_id=room)})


@router.get("/rooms/{room_id}/joined_members")
async def get_joined_members_by_room(room_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Names and avatars of who is joined, for members."""
    room = room_id_of(room_id)
    async with gateway.shards.of_room(room).reading() as tx:
        await require_joined(tx, room, requester.user_id)
        members = await list_joined_members(tx, room)
    joined: dict[str, dict[str, str]] = {}
    for user_id, pdu in members:
        content = orjson.loads(pdu)["content"]
        shown = {"display_name": content.get("displayname"), "avatar_url": content.get("avatar_url")}
        joined[user_id] = {key: value for key, value in shown.items() if isinstance(value, str)}
    return json_reply({"joined": joined})
