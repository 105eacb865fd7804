"""The search in the user directory. Spec: C-S API §User Directory."""

from typing import Any

from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.registration import optional_text
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.errors import BadJson, InvalidParam, MissingParam
from tessera.http.replies import json_reply
from tessera.storage.user_directory import DirectoryUser, search_users

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
    directory = gateway.settings.user_directory
    if not directory.enabled:
        return json_reply({"limited": False, "results": []})
    async with gateway.accounts.reading() as tx:
        # One more than asked for tells whether there are more.
        found = await search_users(tx, requester.user_id, term, limit=limit + 1, all_users=directory.search_all_users)
    return json_reply({"limited": len(found) > limit, "results": [_result(user) for user in found[:limit]]})


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
