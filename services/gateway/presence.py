"""Presence that users set and see. Spec: C-S API §Presence."""

from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, UserId, parse_user_id
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.registration import optional_text
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.fanout import PresenceChange
from tessera.http.errors import Forbidden, InvalidParam, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import presence, user_rooms
from tessera.storage.presence import Presence

router = client_router()

STATES = ("online", "offline", "unavailable")
MAX_STATUS_LENGTH = 1_000
CURRENTLY_ACTIVE_MS = 60_000


@router.put("/presence/{user_id}/status")
async def set_presence(user_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Set the user's own presence; without presence on this server it is accepted and means nothing."""
    if user_id != requester.user_id:
        raise Forbidden("Only your own presence can be set")
    state, status_msg = _parse_presence(body)
    gateway.limits.check("rc_presence.per_user", requester.user_id)
    if gateway.settings.presence.enabled:
        await change_presence(gateway, requester.user_id, state, status_msg)
    return json_reply({})


@router.get("/presence/{user_id}/status")
async def get_presence(user_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The presence of the user or of somebody who shares a room with the user."""
    try:
        target = parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from error
    return json_reply(await find_visible_presence(gateway, requester.user_id, target))


async def change_presence(gateway: GatewayDeps, user_id: UserId, state: str, status_msg: str | None) -> None:
    """Store the state (one row a user) and tell the sync services."""
    now_ms = gateway.clock.now_ms()
    async with gateway.accounts.reading() as tx:
        await presence.set_presence(tx, Presence(user_id, state, status_msg, now_ms))
    await gateway.fanout.publish_presence(PresenceChange(user_id, state, status_msg, now_ms, state == "online"))


async def find_visible_presence(gateway: GatewayDeps, requester: UserId, target: UserId) -> dict[str, Any]:
    """The presence as the requester may see it.

    Raises:
        NotFound: nothing is known of the user.
        Forbidden: they share no room.
    """
    if not gateway.settings.presence.enabled:
        return {"presence": "offline"}
    async with gateway.accounts.reading() as tx:
        if target != requester and not await user_rooms.shares_room(tx, requester, target):
            raise Forbidden("You are not allowed to see their presence")
        found = await presence.find_presence(tx, target)
    if found is None:
        raise NotFound("Nothing is known of the user's presence")
    active_ago = max(0, gateway.clock.now_ms() - found.last_active_ts)
    reply: dict[str, Any] = {"presence": found.presence, "last_active_ago": active_ago}
    if found.presence == "online":
        reply["currently_active"] = active_ago < CURRENTLY_ACTIVE_MS
    if found.status_msg is not None:
        reply["status_msg"] = found.status_msg
    return reply


def _parse_presence(body: dict[str, Any]) -> tuple[str, str | None]:
    state = optional_text(body, "presence")
    if state is None:
        raise MissingParam("presence is missing")
    if state not in STATES:
        raise InvalidParam("presence must be online, offline or unavailable")
    status_msg = optional_text(body, "status_msg")
    if status_msg is not None and len(status_msg) > MAX_STATUS_LENGTH:
        raise InvalidParam(f"status_msg is longer than {MAX_STATUS_LENGTH} characters")
    return state, status_msg
