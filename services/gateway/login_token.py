"""Tokens by which a session that is there helps another to log in. Spec: C-S API POST /login/get_token."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.routing import CurrentRequester, client_router
from services.gateway.uia import PASSWORD_FLOWS, UiaRequest
from tessera.http.errors import MatrixError
from tessera.http.replies import json_reply
from tessera.storage import one_time_logins

v1_router = client_router()


@v1_router.post("/login/get_token")
async def generate_login_token(body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """A token for one login within a short time, after interactive authentication each time."""
    settings = gateway.settings.login_via_existing_session
    if not settings.enabled:
        raise MatrixError("Login tokens are disabled on this server", errcode="M_FORBIDDEN", status=400)
    await gateway.uia.require(
        UiaRequest("generateLoginToken", (requester.user_id,), PASSWORD_FLOWS, requester.user_id), body.get("auth")
    )
    gateway.limits.check("rc_login.account", requester.user_id)
    token, now_ms = f"tsl_{gateway.ids.token(24)}", gateway.clock.now_ms()
    async with gateway.accounts.transaction() as tx:
        await one_time_logins.add_login_token(
            tx, requester.user_id, token, expires_ts=now_ms + settings.token_timeout, now_ms=now_ms
        )
    return json_reply({"login_token": token, "expires_in_ms": settings.token_timeout})
