"""Application services see whether they can be reached. Spec: Application Service API §Pinging."""

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.appservice_names import require_appservice
from services.gateway.dependencies import GatewayDep
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.registration import optional_text
from services.gateway.routing import client_router
from tessera.http.errors import Forbidden, MatrixError
from tessera.http.json_calls import CallFailed
from tessera.http.replies import json_reply
from tessera.storage import appservice_queue

v1_router = client_router()


@v1_router.post("/appservice/{service_id}/ping")
async def ping_appservice(service_id: str, request: Request, body: OptionalJsonObject, gateway: GatewayDep) -> Response:
    """Call a service on its own behalf, so that it sees that it can be reached."""
    service = require_appservice(gateway, request)
    if service.service_id != service_id:
        raise Forbidden("That is not your ID")
    if service.url is None:
        raise MatrixError("The application service has no URL", errcode="M_URL_NOT_SET", status=400)
    transaction_id = optional_text(body, "transaction_id")
    asked = {} if transaction_id is None else {"transaction_id": transaction_id}
    begun = gateway.clock.monotonic()
    try:
        status, answer = await gateway.calls.trusted.post(
            f"{service.url}/_matrix/app/v1/ping", asked, headers={"Authorization": f"Bearer {service.hs_token}"}
        )
    except CallFailed as error:
        timed_out = isinstance(error.__cause__, TimeoutError)
        errcode, code = ("M_CONNECTION_TIMEOUT", 504) if timed_out else ("M_CONNECTION_FAILED", 502)
        raise MatrixError("The application service cannot be reached", errcode=errcode, status=code) from error
    if not 200 <= status < 300:
        raise MatrixError(
            f"The application service answers {status}",
            errcode="M_BAD_STATUS",
            status=502,
            fields={"status": status, "body": str(answer)[:1_000]},
        )
    # It can be reached: whatever waits for it is tried now.
    async with gateway.accounts.reading() as tx:
        await appservice_queue.reset(tx, service_id)
    return json_reply({"duration_ms": round((gateway.clock.monotonic() - begun) * 1000)})
