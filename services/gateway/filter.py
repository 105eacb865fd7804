"""Upload and download of filters. Spec: C-S API §Filtering, "API endpoints"."""

import orjson
from starlette.responses import Response

from matrixcore.filters import InvalidFilter, parse_filter
from services.gateway.account_data import require_own
from services.gateway.dependencies import AccountsDep
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.errors import InvalidParam, MatrixError, NotFound
from tessera.http.replies import json_bytes_reply, json_reply
from tessera.storage import filters

router = client_router()

MAX_FILTER_BYTES = 65_536


@router.post("/user/{user_id}/filter")
async def define_filter(user_id: str, body: JsonObject, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """Store a filter; an equal one gets the same ID again."""
    require_own(requester.user_id, user_id)
    try:
        parse_filter(body)
    except InvalidFilter as error:
        raise InvalidParam(str(error)) from error
    definition = orjson.dumps(body)
    if len(definition) > MAX_FILTER_BYTES:
        raise MatrixError(f"The filter is larger than {MAX_FILTER_BYTES} bytes", errcode="M_TOO_LARGE", status=413)
    async with accounts.reading() as tx:
        filter_id = await filters.add_filter(tx, requester.user_id, definition)
    return json_reply({"filter_id": filter_id})


@router.get("/user/{user_id}/filter/{filter_id}")
async def get_filter(user_id: str, filter_id: str, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """A filter as it was uploaded."""
    require_own(requester.user_id, user_id)
    async with accounts.reading() as tx:
        definition = await filters.find_filter(tx, requester.user_id, filter_id)
    if definition is None:
        raise NotFound("There is no such filter")
    return json_bytes_reply(definition)
