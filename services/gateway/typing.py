"""PUT /typing. Spec: C-S API §Typing notifications."""

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.errors import BadJson, Forbidden
from tessera.http.replies import json_reply
from tessera.storage.room_reads.rooms import find_for_reader
from tessera.wakes import TypingChange

router = client_router()

DEFAULT_TIMEOUT_MS = 30_000
MAX_TIMEOUT_MS = 120_000


@router.put("/rooms/{room_id}/typing/{user_id}")
async def set_typing(
    room_id: str, user_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Tell the room that the user is typing, for a while, or has stopped."""
    if user_id != requester.user_id:
        raise Forbidden("You cannot type for somebody else")
    timeout_ms = _timeout_of(body)
    room = room_id_of(room_id)
    async with gateway.shards.of_room(room).reading() as tx:
        found = await find_for_reader(tx, room, requester.user_id)
    if found is None or found.membership != "join":
        raise Forbidden("You are not joined to this room")
    await gateway.fanout.publish_typing(TypingChange(room, requester.user_id, timeout_ms))
    return json_reply({})


def _timeout_of(body: dict[str, object]) -> int:
    typing, timeout = body.get("typing"), body.get("timeout", DEFAULT_TIMEOUT_MS)
    if not isinstance(typing, bool):
        raise BadJson("typing must be a boolean")
    if not typing:
        return 0
    if timeout is None:
        timeout = DEFAULT_TIMEOUT_MS
    if isinstance(timeout, bool) or not isinstance(timeout, int):
        raise BadJson("timeout must be an integer")
    return max(1, min(timeout, MAX_TIMEOUT_MS))
