"""What clients keep on the server, for the user or for one of the user's rooms. Spec: C-S API §Client config."""

from typing import Any

import orjson
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, RoomId, UserId, parse_room_id
from services.gateway.dependencies import AccountsDep, FanoutDep
from services.gateway.pushrules import list_rules
from services.gateway.routing import CurrentRequester, LooseJsonObject, client_router
from tessera.fanout import Fanout
from tessera.http.errors import Forbidden, InvalidParam, MatrixError, NotFound
from tessera.http.replies import json_bytes_reply, json_reply
from tessera.storage import account_data, user_log
from tessera.storage.account_data import GLOBAL
from tessera.storage.database import Database

router = client_router()

deletions = client_router()
"""Its paths stand below a proposal's name: MSC3391."""

MAX_TYPE_LENGTH = 255
MAX_CONTENT_BYTES = 1_048_576  # what an initial sync carries for ever after
_PUSH_RULES = "m.push_rules"
_SERVER_MANAGED = frozenset(("m.fully_read", _PUSH_RULES))


@router.put("/user/{user_id}/account_data/{data_type}")
async def set_account_data(
    user_id: str,
    data_type: str,
    content: LooseJsonObject,
    requester: CurrentRequester,
    accounts: AccountsDep,
    fanout: FanoutDep,
) -> Response:
    """Set one type of the user's own data."""
    require_own(requester.user_id, user_id)
    await change_content(accounts, fanout, requester.user_id, GLOBAL, check_type(data_type), content)
    return json_reply({})


@router.get("/user/{user_id}/account_data/{data_type}")
async def get_account_data(
    user_id: str, data_type: str, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """One type of the user's own data; push rules are made from where they are kept."""
    require_own(requester.user_id, user_id)
    if data_type == _PUSH_RULES:
        return json_reply({"global": await list_rules(accounts, requester.user_id)})
    return json_bytes_reply(await require_content(accounts, requester.user_id, GLOBAL, data_type))


@router.put("/user/{user_id}/rooms/{room_id}/account_data/{data_type}")
async def set_account_data_per_room(
    user_id: str,
    room_id: str,
    data_type: str,
    content: LooseJsonObject,
    requester: CurrentRequester,
    accounts: AccountsDep,
    fanout: FanoutDep,
) -> Response:
    """Set one type of the user's data for a room."""
    require_own(requester.user_id, user_id)
    room = require_room_id(room_id)
    await change_content(accounts, fanout, requester.user_id, room, check_type(data_type), content)
    return json_reply({})


@router.get("/user/{user_id}/rooms/{room_id}/account_data/{data_type}")
async def get_account_data_per_room(
    user_id: str, room_id: str, data_type: str, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """One type of the user's data for a room."""
    require_own(requester.user_id, user_id)
    return json_bytes_reply(await require_content(accounts, requester.user_id, require_room_id(room_id), data_type))


@deletions.delete("/user/{user_id}/account_data/{data_type}")
async def delete_account_data(
    user_id: str, data_type: str, requester: CurrentRequester, accounts: AccountsDep, fanout: FanoutDep
) -> Response:
    """Delete one type of the user's own data; syncs tell of it as empty content."""
    require_own(requester.user_id, user_id)
    await delete_content(accounts, fanout, requester.user_id, GLOBAL, check_type(data_type))
    return json_reply({})


@deletions.delete("/user/{user_id}/rooms/{room_id}/account_data/{data_type}")
async def delete_account_data_per_room(
    user_id: str, room_id: str, data_type: str, requester: CurrentRequester, accounts: AccountsDep, fanout: FanoutDep
) -> Response:
    """Delete one type of the user's data for a room."""
    require_own(requester.user_id, user_id)
    await delete_content(accounts, fanout, requester.user_id, require_room_id(room_id), check_type(data_type))
    return json_reply({})


async def change_content(
    accounts: Database, fanout: Fanout, user_id: UserId, room_id: str, data_type: str, content: dict[str, Any]
) -> None:
    """Store the content and tell the user's clients."""
    encoded = orjson.dumps(content)
    if len(encoded) > MAX_CONTENT_BYTES:
        raise MatrixError(f"The content is larger than {MAX_CONTENT_BYTES} bytes", errcode="M_TOO_LARGE", status=413)
    async with accounts.transaction() as tx:
        heads = await account_data.set_content(tx, user_id, room_id, data_type, encoded)
    await fanout.publish_user_wakes(user_log.wakes_of(heads))


async def delete_content(accounts: Database, fanout: Fanout, user_id: UserId, room_id: str, data_type: str) -> None:
    """Delete the content and tell the user's clients; what is not there needs neither."""
    async with accounts.transaction() as tx:
        if await account_data.find_content(tx, user_id, room_id, data_type) is None:
            return
        heads = await account_data.set_content(tx, user_id, room_id, data_type, None)
    await fanout.publish_user_wakes(user_log.wakes_of(heads))


async def require_content(accounts: Database, user_id: UserId, room_id: str, data_type: str) -> bytes:
    """The content as it was stored. Raises NotFound."""
    async with accounts.reading() as tx:
        content = await account_data.find_content(tx, user_id, room_id, data_type)
    if content is None:
        raise NotFound("Account data not found")
    return content


def check_type(data_type: str) -> str:
    """A type that clients may set.

    Raises:
        MatrixError: 405 M_BAD_JSON for the types that the server manages.
        InvalidParam: too long.
    """
    if data_type in _SERVER_MANAGED:
        raise MatrixError(f"Cannot set {data_type} through this API", errcode="M_BAD_JSON", status=405)
    if len(data_type) > MAX_TYPE_LENGTH:
        raise InvalidParam(f"type is longer than {MAX_TYPE_LENGTH} characters")
    return data_type


def require_own(requester: UserId, user_id: str) -> None:
    """Raises Forbidden unless it is the requester's own ID."""
    if user_id != requester:
        raise Forbidden("These are not your own data")


def require_room_id(room_id: str) -> RoomId:
    """Raises InvalidParam for what is no room ID."""
    try:
        return parse_room_id(room_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"{room_id[:64]} is not a valid room ID") from error
