"""Credentials for the TURN server. Spec: C-S API §Voice over IP, GET /voip/turnServer."""

import base64
import hmac
from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.dependencies import ClockDep, SettingsDep
from services.gateway.routing import CurrentRequester, client_router
from tessera.config import Settings
from tessera.http.errors import GuestAccessForbidden, NotFound
from tessera.http.replies import json_reply

router = client_router()


@router.get("/voip/turnServer")
async def get_turn_server(requester: CurrentRequester, settings: SettingsDep, clock: ClockDep) -> Response:
    """Credentials that the TURN server accepts for a while.

    An empty object, as Synapse has it, would lack what the specification requires.

    Raises:
        GuestAccessForbidden: guests get none. NotFound: this server has no TURN server.
    """
    if requester.is_guest and not settings.turn_allow_guests:
        raise GuestAccessForbidden
    credentials = turn_credentials(settings, requester.user_id, clock.now_ms())
    if credentials is None:
        raise NotFound("This server has no TURN server")
    return json_reply(credentials)


def turn_credentials(settings: Settings, user_id: UserId, now_ms: int) -> dict[str, Any] | None:
    """Short-lived credentials made with the shared secret (coturn's REST API), else the fixed ones, or None."""
    if not settings.turn_uris:
        return None
    ttl_seconds = settings.turn_user_lifetime // 1000
    if settings.turn_shared_secret is not None:
        username = f"{now_ms // 1000 + ttl_seconds}:{user_id}"
        # SHA-1, since that is what TURN servers check.
        digest = hmac.digest(settings.turn_shared_secret.get_secret_value().encode(), username.encode(), "sha1")
        password = base64.b64encode(digest).decode()
    elif settings.turn_username is not None and settings.turn_password is not None:
        username, password = settings.turn_username, settings.turn_password.get_secret_value()
    else:
        return None
    return {"username": username, "password": password, "ttl": ttl_seconds, "uris": list(settings.turn_uris)}
