"""Redacting events. Spec: C-S API §Redactions."""

from starlette.responses import Response

from matrixcore.identifiers import EventId, RoomId, UserId
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import event_id_of, room_id_of
from services.gateway.related_redactions import redact_related, relations_of
from services.gateway.room_changes import session_of
from services.gateway.room_membership import reason_of
from services.gateway.room_send import send_redaction
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import UserSuspended
from tessera.http.replies import json_reply
from tessera.storage.room_reads.events import find_event

router = client_router()


@router.put("/rooms/{room_id}/redact/{event_id}/{txn_id}")
async def redact_event(
    room_id: str,
    event_id: str,
    txn_id: str,
    body: OptionalJsonObject,
    requester: CurrentRequester,
    gateway: GatewayDep,
) -> Response:
    """Strip an event of what it says; a repeated txn_id answers with the first redaction's ID."""
    room, target = room_id_of(room_id), event_id_of(event_id)
    if requester.is_suspended:
        await _require_own(gateway, room, target, requester.user_id)
    gateway.limits.check(await _limit_of(gateway, room, target, requester.user_id), requester.user_id)
    rel_types = relations_of(body)
    content, path = {**reason_of(body)}, f"/rooms/{room}/redact/{target}/{txn_id}"
    session = session_of(requester)
    redaction_id = await send_redaction(gateway.rooms, session, room, target, content, path, txn_id)
    if rel_types:
        await redact_related(gateway.rooms, session, room, target, rel_types, content, path, txn_id)
    return json_reply({"event_id": redaction_id})


async def _require_own(gateway: GatewayDeps, room_id: RoomId, target: EventId, user_id: UserId) -> None:
    """Raises UserSuspended unless the event is the user's: who is suspended may only take back their own."""
    async with gateway.shards.of_room(room_id).reading() as tx:
        event = await find_event(tx, room_id, target)
    if event is None or event.sender != user_id:
        raise UserSuspended


async def _limit_of(gateway: GatewayDeps, room_id: RoomId, target: EventId, user_id: UserId) -> str:
    """The limit that counts: moderators, who clear away what others said, may have one of their own."""
    if gateway.settings.rc_admin_redaction is None:
        return "rc_message"
    async with gateway.shards.of_room(room_id).reading() as tx:
        event = await find_event(tx, room_id, target)
    return "rc_message" if event is None or event.sender == user_id else "rc_admin_redaction"
