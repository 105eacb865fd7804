"""The rooms that a user is joined to. Spec: C-S API §Listing the user's rooms (GET /joined_rooms)."""

from starlette.responses import Response

from services.gateway.dependencies import AccountsDep
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.replies import json_reply
from tessera.storage import user_rooms

router = client_router()


@router.get("/joined_rooms")
async def get_joined_rooms(requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """The IDs of the user's joined rooms."""
    async with accounts.reading() as tx:
        rooms = await user_rooms.list_rooms(tx, requester.user_id, ("join",))
    return json_reply({"joined_rooms": [room.room_id for room in rooms]})
