"""Exchange of refresh tokens. Spec: C-S API §Refreshing access tokens, POST /refresh."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.routing import JsonObject, client_router
from services.gateway.sessions import IssuedTokens, TokenLifetimes, make_tokens
from tessera.http.errors import BadJson, MissingParam, UnknownToken, UserLocked
from tessera.http.replies import json_reply
from tessera.storage import access_tokens, oauth_clients
from tessera.storage.access_tokens import FoundRefresh, hash_token

router = client_router()


@router.post("/refresh")
async def refresh(body: JsonObject, gateway: GatewayDep) -> Response:
    """New tokens for an old refresh token, which stays valid until one of the new ones is used."""
    token = body.get("refresh_token")
    if token is None:
        raise MissingParam("refresh_token is missing")
    if not isinstance(token, str):
        raise BadJson("refresh_token must be a string")
    issued, _ = await exchange_refresh_token(gateway, token)
    return json_reply(issued.fields())


async def exchange_refresh_token(
    gateway: GatewayDeps, token: str, *, lifetimes: TokenLifetimes | None = None, client_id: str | None = None
) -> tuple[IssuedTokens, FoundRefresh]:
    """Exchange a refresh token.

    Using it proves that its predecessor is needed no more: that one is revoked here.

    Args:
        lifetimes: of the new tokens; as a rule those of the settings.
        client_id: the OAuth 2.0 client that asks, which must be the one that has the session; None for a client of
            the legacy API, to which sessions of the other one are nothing.

    Raises:
        UnknownToken: unknown, superseded (the session is gone), or expired (soft logout).
        LimitExceeded: the device asks too often.
        UserLocked
    """
    now_ms = gateway.clock.now_ms()
    async with gateway.accounts.transaction() as tx:
        found = await access_tokens.find_refresh_token(tx, token)
        if found is not None:
            owner = await oauth_clients.find_session_client(tx, found.user_id, found.device_id)
            found = found if owner == client_id else None
        if found is None:
            raise UnknownToken("The refresh token is unknown or was used")
        if found.expires_ts is not None and found.expires_ts <= now_ms:
            raise UnknownToken("The refresh token has expired", soft_logout=True)
        if found.locked:
            raise UserLocked
        gateway.limits.check("tessera.rc_refresh", f"{found.user_id} {found.device_id}")
        if found.supersedes is not None:
            await access_tokens.revoke_superseded(tx, found.user_id, found.device_id, found.supersedes)
        issued, stored = make_tokens(
            gateway.ids,
            lifetimes or gateway.lifetimes,
            now_ms,
            refreshable=True,
            session_expires_ts=found.session_expires_ts,
        )
        await access_tokens.add_refreshed(
            tx, found.user_id, found.device_id, stored, supersedes=hash_token(token), now_ms=now_ms
        )
    return issued, found
