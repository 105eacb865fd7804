"""Whose an OpenID token is. Spec: S-S API §OpenID."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from services.federation_in.dependencies import FederationInDep
from services.federation_in.routing import V1, peer_router
from tessera.http.errors import UnknownToken
from tessera.http.replies import json_reply
from tessera.storage.one_time_logins import find_openid_user

router = peer_router()


@router.get(V1 + "/openid/userinfo")
async def exchange_open_id_token(
    deps: FederationInDep, access_token: Annotated[str, Query(max_length=500)]
) -> Response:
    """The user who asked for a token. Whoever has one may ask, and need be no server."""
    async with deps.accounts.reading() as tx:
        user_id = await find_openid_user(tx, access_token, deps.clock.now_ms())
    if user_id is None:
        raise UnknownToken("The token is not known, or has expired")
    return json_reply({"sub": user_id})
