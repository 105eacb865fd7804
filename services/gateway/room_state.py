"""Setting state. Spec: C-S API §Sending events to a room (PUT /state)."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import RoomId, UserId, fits_in_bytes
from services.gateway.delayed_events import delay_of, schedule
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.given_timestamps import session_with_time
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import refuse_guest
from services.gateway.room_changes import RoomChanges, Session
from services.gateway.room_directory import check_canonical_alias
from services.gateway.room_membership import set_member_state
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.commands import NewEvent
from tessera.http.authentication import Requester
from tessera.http.errors import Forbidden, InvalidParam
from tessera.http.replies import json_reply
from tessera.storage.room_reads.rooms import find_for_reader

router = client_router()


@router.put("/rooms/{room_id}/state/{event_type}")
async def set_room_state(
    request: Request,
    room_id: str,
    event_type: str,
    content: JsonObject,
    requester: CurrentRequester,
    gateway: GatewayDep,
) -> Response:
    """Set the state of a type with the empty key."""
    return await _set(request, gateway, requester, room_id, event_type, "", content)


@router.put("/rooms/{room_id}/state/{event_type}/{state_key:path}")
async def set_room_state_with_key(
    request: Request,
    room_id: str,
    event_type: str,
    state_key: str,
    content: JsonObject,
    requester: CurrentRequester,
    gateway: GatewayDep,
) -> Response:
    """Set the state of a type and key; content that is there already answers the event that has it."""
    return await _set(request, gateway, requester, room_id, event_type, state_key, content)


async def _set(
    request: Request,
    gateway: GatewayDeps,
    requester: Requester,
    room_id: str,
    event_type: str,
    state_key: str,
    content: dict[str, Any],
) -> Response:
    if event_type == "m.room.member":
        refuse_guest(requester)  # guests join and leave by the endpoints for that
    gateway.limits.check("rc_message", requester.user_id)
    if (delay_ms := delay_of(request)) is not None:
        return await schedule(gateway, requester, room_id_of(room_id), event_type, state_key, content, delay_ms)
    session = session_with_time(request, requester)
    event_id = await set_state(gateway.rooms, session, room_id_of(room_id), event_type, state_key, content)
    return json_reply({"event_id": event_id})


async def set_state(
    changes: RoomChanges, session: Session, room_id: RoomId, event_type: str, state_key: str, content: dict[str, Any]
) -> str:
    """Set one piece of state; memberships take their own path.

    Raises:
        MatrixError: refused, or not done in time (503).
    """
    if not event_type or not fits_in_bytes(event_type) or not fits_in_bytes(state_key):
        raise InvalidParam("the event type must have 1 to 255 bytes, the state key at most 255")
    if event_type == "m.room.member":
        changed = await set_member_state(changes, session, room_id, state_key, content)
        return changed or await _member_event(changes, room_id, UserId(state_key))
    if event_type == "m.room.canonical_alias" and state_key == "":
        await check_canonical_alias(changes, room_id, content)
    event_id = await changes.append(room_id, session, NewEvent(event_type, state_key, content))
    assert event_id is not None
    return event_id


async def _member_event(changes: RoomChanges, room_id: RoomId, user_id: UserId) -> str:
    """The member event that is in force, where nothing had to be done."""
    async with changes.shards.of_room(room_id).reading() as tx:
        found = await find_for_reader(tx, room_id, user_id)
    if found is None or found.member_event_id is None:
        raise Forbidden("There is no such member")
    return found.member_event_id
