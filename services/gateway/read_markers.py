"""POST /read_markers. Spec: C-S API §Fully read markers."""

from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, parse_event_id
from services.gateway.dependencies import GatewayDep
from services.gateway.own_receipts import RECEIPT_TYPES, set_receipts
from services.gateway.path_identifiers import room_id_of
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.errors import InvalidParam
from tessera.http.replies import json_reply

router = client_router()


@router.post("/rooms/{room_id}/read_markers")
async def set_read_marker(room_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Set the fully read marker, and receipts with it."""
    events = {}
    for receipt_type in sorted(RECEIPT_TYPES):
        value = body.get(receipt_type)
        if value is None:
            continue
        try:
            events[receipt_type] = parse_event_id(value)
        except InvalidIdentifier as error:
            raise InvalidParam(f"{receipt_type}: {error}") from error
    await set_receipts(gateway.rooms, gateway.receipts, requester.user_id, room_id_of(room_id), events)
    return json_reply({})
