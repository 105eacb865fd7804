"""The search in the user directory. Spec: C-S API §User Directory."""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import RoomId, UserId
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.registration import optional_text
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.errors import BadJson, InvalidParam, MissingParam
from tessera.http.replies import json_reply
from tessera.storage.sync_reads import list_rooms_of_users
from tessera.storage.user_directory import DirectoryUser, list_open_rooms, search_users

router = client_router()

DEFAULT_LIMIT = 10
MAX_LIMIT = 50
MAX_TERM_LENGTH = 500


@router.post("/user_directory/search")
async def search_user_directory(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Users whom the requester can see and whose ID or name matches."""
    term = optional_text(body, "search_term")
    if term is None:
        raise MissingParam("search_term is missing")
    if len(term) > MAX_TERM_LENGTH:
        raise InvalidParam(f"search_term is longer than {MAX_TERM_LENGTH} characters")
    limit = _parse_limit(body)
    gateway.limits.check("rc_user_directory", requester.user_id)
    if not gateway.settings.user_directory.enabled:
        return json_reply({"limited": False, "results": []})
    found = await find_people(gateway, requester.user_id, term, limit)
    return json_reply({"limited": len(found) > limit, "results": [_result(user) for user in found[:limit]]})


async def find_people(gateway: GatewayDeps, requester: UserId, term: str, limit: int) -> list[DirectoryUser]:
    """Whom the requester can see, best first; one more than asked for tells that there are more."""
    directory = gateway.settings.user_directory
    async with gateway.accounts.reading() as tx:
        found = await search_users(
            tx,
            requester,
            term,
            limit=limit + 1,
            all_users=directory.search_all_users,
            locked_users=directory.show_locked_users,
            remote_users=not directory.exclude_remote_users,
        )
    local = [user for user in found if user.is_local]
    remote = [user for user in found if not user.is_local]
    if not remote:
        return local
    seen = [*local, *await _list_visible(gateway, requester, remote)]
    if not directory.prefer_local_users:
        # Both parts are sorted; what matches exactly goes before what does not, wherever it is from.
        exact = term.strip().lower()
        seen.sort(key=lambda user: exact not in (user.user_id, (user.displayname or "").lower()))
    return seen


async def _list_visible(
    gateway: GatewayDeps, requester: UserId, people: Sequence[DirectoryUser]
) -> list[DirectoryUser]:
    """Those users of other servers who are in a room of the requester's, or one that everybody may join or read."""
    user_ids = [user.user_id for user in people]

    async def of_shard(name: str) -> list[tuple[UserId, RoomId]]:
        async with gateway.shards.databases[name].reading() as tx:
            return await list_rooms_of_users(tx, user_ids)

    memberships = [one for found in await asyncio.gather(*map(of_shard, gateway.shards.names)) for one in found]
    async with gateway.accounts.reading() as tx:
        is_open = await list_open_rooms(tx, requester, {room_id for _, room_id in memberships})
    visible = {user_id for user_id, room_id in memberships if room_id in is_open}
    return [user for user in people if user.user_id in visible]


def _parse_limit(body: dict[str, Any]) -> int:
    limit = body.get("limit", DEFAULT_LIMIT)
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise BadJson("limit must be an integer")
    if limit < 1:
        raise InvalidParam("limit must be positive")
    return min(limit, MAX_LIMIT)


def _result(user: DirectoryUser) -> dict[str, str]:
    result: dict[str, str] = {"user_id": user.user_id}
    if user.displayname is not None:
        result["display_name"] = user.displayname
    if user.avatar_url is not None:
        result["avatar_url"] = user.avatar_url
    return result
