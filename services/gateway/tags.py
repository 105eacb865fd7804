"""Tags of rooms: the m.tag account data of a room, one tag at a time. Spec: C-S API §Room tagging."""

from collections.abc import Callable
from typing import Any

import orjson
from starlette.responses import Response

from matrixcore.identifiers import RoomId, UserId
from services.gateway.account_data import require_own, require_room_id
from services.gateway.dependencies import AccountsDep, FanoutDep
from services.gateway.routing import CurrentRequester, LooseJsonObject, client_router
from tessera.fanout import Fanout
from tessera.http.errors import BadJson, InvalidParam
from tessera.http.replies import json_reply
from tessera.storage import account_data, user_log, users
from tessera.storage.database import Database

router = client_router()

TAGS = "m.tag"
MAX_TAG_BYTES = 255
MAX_TAGS = 100  # of one room

Tags = dict[str, Any]


@router.get("/user/{user_id}/rooms/{room_id}/tags")
async def get_room_tags(user_id: str, room_id: str, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """The tags of a room."""
    require_own(requester.user_id, user_id)
    room = require_room_id(room_id)
    async with accounts.reading() as tx:
        content = await account_data.find_content(tx, requester.user_id, room, TAGS)
    return json_reply({"tags": _tags_of(content)})


@router.put("/user/{user_id}/rooms/{room_id}/tags/{tag}")
async def set_room_tag(
    user_id: str,
    room_id: str,
    tag: str,
    body: LooseJsonObject,
    requester: CurrentRequester,
    accounts: AccountsDep,
    fanout: FanoutDep,
) -> Response:
    """Add or replace a tag."""
    require_own(requester.user_id, user_id)
    check_tag(tag, body)
    await change_tags(accounts, fanout, requester.user_id, require_room_id(room_id), lambda tags: {**tags, tag: body})
    return json_reply({})


@router.delete("/user/{user_id}/rooms/{room_id}/tags/{tag}")
async def delete_room_tag(
    user_id: str, room_id: str, tag: str, requester: CurrentRequester, accounts: AccountsDep, fanout: FanoutDep
) -> Response:
    """Take a tag away, whether it is there or not."""
    require_own(requester.user_id, user_id)
    await change_tags(
        accounts,
        fanout,
        requester.user_id,
        require_room_id(room_id),
        lambda tags: {name: value for name, value in tags.items() if name != tag},
    )
    return json_reply({})


async def change_tags(
    accounts: Database, fanout: Fanout, user_id: UserId, room_id: RoomId, change: Callable[[Tags], Tags]
) -> None:
    """Apply one change to a room's tags; two at a time follow each other, so that none is lost."""
    async with accounts.transaction() as tx:
        await users.lock_user(tx, user_id)
        old = _tags_of(await account_data.find_content(tx, user_id, room_id, TAGS))
        new = change(old)
        if new == old:
            return
        if len(new) > MAX_TAGS:
            raise InvalidParam(f"A room can have {MAX_TAGS} tags")
        heads = await account_data.set_content(tx, user_id, room_id, TAGS, orjson.dumps({"tags": new}))
    await fanout.publish_user_wakes(user_log.wakes_of(heads))


def check_tag(tag: str, body: Tags) -> None:
    """Raises InvalidParam for a name over 255 bytes, BadJson for an order that is no number within [0, 1]."""
    if len(tag.encode("utf-8", "surrogatepass")) > MAX_TAG_BYTES:
        raise InvalidParam(f"The tag is longer than {MAX_TAG_BYTES} bytes")
    order = body.get("order")
    if order is None:
        return
    if isinstance(order, bool) or not isinstance(order, int | float):
        raise BadJson("order must be a number")
    if not 0 <= order <= 1:
        raise InvalidParam("order must lie between 0 and 1")


def _tags_of(content: bytes | None) -> Tags:
    # Clients can write m.tag as plain account data too, whatever they put there.
    tags = None if content is None else orjson.loads(content).get("tags")
    return tags if isinstance(tags, dict) else {}
