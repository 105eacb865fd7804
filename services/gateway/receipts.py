"""POST /receipt. Spec: C-S API §Receipts."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.own_receipts import RECEIPT_TYPES, parse_thread_id, set_receipts
from services.gateway.path_identifiers import event_id_of, room_id_of
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import InvalidParam
from tessera.http.replies import json_reply

router = client_router()


@router.post("/rooms/{room_id}/receipt/{receipt_type}/{event_id}")
async def post_receipt(
    room_id: str,
    receipt_type: str,
    event_id: str,
    body: OptionalJsonObject,
    requester: CurrentRequester,
    gateway: GatewayDep,
) -> Response:
    """Mark everything up to an event as read."""
    if receipt_type not in RECEIPT_TYPES:
        raise InvalidParam("receiptType must be m.read, m.read.private or m.fully_read")
    await set_receipts(
        gateway.rooms,
        gateway.receipts,
        requester.user_id,
        room_id_of(room_id),
        {receipt_type: event_id_of(event_id)},
        parse_thread_id(body, receipt_type),
    )
    return json_reply({})
