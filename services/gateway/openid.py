"""Tokens by which a user shows other services who they are. Spec: C-S API §OpenID."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import Forbidden
from tessera.http.replies import json_reply
from tessera.storage import one_time_logins

router = client_router()

LIFETIME_SECONDS = 3_600


@router.post("/user/{user_id}/openid/request_token")
async def request_open_id_token(
    user_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """A token that stands for the user for an hour, and only at GET /openid/userinfo."""
    if user_id != requester.user_id:
        raise Forbidden("OpenID tokens are for yourself only")
    token, now_ms = f"tso_{gateway.ids.token(24)}", gateway.clock.now_ms()
    async with gateway.accounts.transaction() as tx:
        await one_time_logins.add_openid_token(
            tx, requester.user_id, token, expires_ts=now_ms + LIFETIME_SECONDS * 1000, now_ms=now_ms
        )
    return json_reply(
        {
            "access_token": token,
            "token_type": "Bearer",
            "matrix_server_name": gateway.server_name,
            "expires_in": LIFETIME_SECONDS,
        }
    )
