"""Redacting events. Spec: C-S API §Redactions."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import event_id_of, room_id_of
from services.gateway.room_changes import session_of
from services.gateway.room_membership import reason_of
from services.gateway.room_send import send_redaction
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.replies import json_reply

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
    gateway.limits.check("rc_message", requester.user_id)
    room, target = room_id_of(room_id), event_id_of(event_id)
    redaction_id = await send_redaction(
        gateway.rooms,
        session_of(requester),
        room,
        target,
        {**reason_of(body)},
        f"/rooms/{room}/redact/{target}/{txn_id}",
        txn_id,
    )
    return json_reply({"event_id": redaction_id})
