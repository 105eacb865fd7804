"""Where calls of many go: the media servers that the operator names.

Spec: MSC4143 (MatrixRTC).
"""

from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.routing import CurrentRequester
from tessera.http.replies import json_reply

router = APIRouter(default_response_class=Response)


@router.get("/_matrix/client/unstable/org.matrix.msc4143/rtc/transports")
async def get_rtc_transports(_requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The transports of `matrix_rtc`, as they stand in the configuration."""
    return json_reply({"rtc_transports": list(gateway.settings.matrix_rtc.transports)})
