"""Sending message events: the hottest route, plain Starlette, first in the route table.

Spec: C-S API §Sending events to a room, §Transaction identifiers, §Redactions.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import EventId, RoomId, fits_in_bytes
from matrixcore.relations import annotation_identity, parse_relation, thread_root
from services.gateway.delayed_events import delay_of, schedule
from services.gateway.dependencies import gateway_of
from services.gateway.given_timestamps import session_with_time
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_changes import RoomChanges, Session, new_redaction, session_of
from services.gateway.routing import client_routes, requester_of
from services.gateway.send_checks import check_transaction_id, redaction_target
from tessera.commands import NewEvent
from tessera.http.bodies import read_json_object
from tessera.http.errors import InvalidParam, MatrixError
from tessera.http.replies import json_reply
from tessera.storage.room_reads.relations import find_annotation, find_rel_type


async def send_message(request: Request) -> Response:
    """Send a message event; a repeated txnId answers with the first event's ID."""
    requester = await requester_of(request)
    gateway = gateway_of(request)
    path = request.path_params
    gateway.limits.check("rc_message", requester.user_id)
    content = await read_json_object(request)
    if request.scope["query_string"] and (delay_ms := delay_of(request)) is not None:
        room_id, event_type = room_id_of(path["room_id"]), path["event_type"]
        return await schedule(gateway, requester, room_id, event_type, None, content, delay_ms, path["txn_id"])
    session = session_with_time(request, requester) if request.scope["query_string"] else session_of(requester)
    event_id = await send_event(
        gateway.rooms, session, room_id_of(path["room_id"]), path["event_type"], content, path["txn_id"]
    )
    return json_reply({"event_id": event_id})


routes = client_routes("/rooms/{room_id}/send/{event_type}/{txn_id}", send_message, methods=["PUT"])


async def send_event(
    changes: RoomChanges, session: Session, room_id: RoomId, event_type: str, content: dict[str, Any], txn_id: str
) -> EventId:
    """Send one event. Membership and power are judged by the room's writer.

    Raises:
        MatrixError: refused, or not done in time (503).
    """
    path = f"/rooms/{room_id}/send/{event_type}/{txn_id}"
    if event_type == "m.room.redaction":
        return await send_redaction(changes, session, room_id, redaction_target(content), content, path, txn_id)
    check_transaction_id(txn_id)
    if not event_type or not fits_in_bytes(event_type):
        raise InvalidParam("the event type must have 1 to 255 bytes")
    if "m.relates_to" in content:
        await _check_annotation(changes, session, room_id, event_type, content, txn_id)
    event_id = await changes.append(room_id, session, NewEvent(event_type, None, content), path=path, txn_id=txn_id)
    assert event_id is not None
    return event_id


async def send_redaction(
    changes: RoomChanges,
    session: Session,
    room_id: RoomId,
    target: EventId,
    content: dict[str, Any],
    path: str,
    txn_id: str,
) -> EventId:
    """Redact an event; `redacts` stands where the room's version keeps it."""
    check_transaction_id(txn_id)
    event_id = await changes.append(room_id, session, new_redaction(content, target), path=path, txn_id=txn_id)
    assert event_id is not None
    return event_id


async def _check_thread(changes: RoomChanges, room_id: RoomId, content: dict[str, Any]) -> None:
    """Refuse to start a thread at an event that relates to another. Spec: §Validation of m.thread relationships."""
    root = thread_root(parse_relation(content))
    if root is None:
        return
    async with changes.shards.of_room(room_id).reading() as tx:
        rel_type = await find_rel_type(tx, room_id, root)
    if rel_type is not None:
        raise MatrixError("A thread cannot begin at an event that relates to another", errcode="M_UNKNOWN", status=400)


async def _check_annotation(
    changes: RoomChanges, session: Session, room_id: RoomId, event_type: str, content: dict[str, Any], txn_id: str
) -> None:
    """Refuse the same annotation twice, but not the same request. Spec: §Avoiding duplicate annotations."""
    identity = annotation_identity(event_type, content)
    if identity is None:
        await _check_thread(changes, room_id, content)
        return
    target, _, key = identity
    async with changes.shards.of_room(room_id).reading() as tx:
        sent = await find_annotation(tx, room_id, target, event_type, session.user_id, key)
    if sent is not None and sent != (session.device_id, txn_id):
        raise MatrixError("You have sent this annotation already", errcode="M_DUPLICATE_ANNOTATION", status=400)
