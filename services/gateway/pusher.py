"""Pushers: where the user wants notifications sent. Spec: C-S API GET /pushers, POST /pushers/set."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.responses import Response

from services.gateway.dependencies import GatewayDep
from services.gateway.registration import optional_flag, optional_text
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from services.gateway.threepid_addresses import EMAIL_MEDIUM, canonical_email
from tessera.http.errors import BadJson, InvalidParam, MatrixError, MissingParam
from tessera.http.replies import json_reply
from tessera.storage import pushers, threepids
from tessera.storage.pushers import Pusher

router = client_router()

MAX_PUSHKEY_BYTES = 512
MAX_APP_ID_LENGTH = 64
MAX_TEXT_LENGTH = 1_000
MAX_DATA_BYTES = 16_384
PUSH_GATEWAY_PATH = "/_matrix/push/v1/notify"
# MSC3881: a session sees which pushers are another one's, and switches them off and on.
_ENABLED, _DEVICE = "org.matrix.msc3881.enabled", "org.matrix.msc3881.device_id"


@router.get("/pushers")
async def get_pushers(requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The user's pushers."""
    async with gateway.accounts.reading() as tx:
        found = await pushers.list_pushers(tx, requester.user_id)
    return json_reply({"pushers": [pusher_json(pusher) for pusher in found]})


@router.post("/pushers/set")
async def post_pusher(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Add, replace or (kind null) delete a pusher."""
    if "kind" not in body:
        raise MissingParam("kind is missing")
    app_id, pushkey = _required(body, "app_id"), _required(body, "pushkey")
    if body["kind"] is None:
        async with gateway.accounts.reading() as tx:
            await pushers.delete_pusher(tx, requester.user_id, app_id, pushkey)
        return json_reply({})
    pusher, append = parse_pusher(body), optional_flag(body, "append")
    async with gateway.accounts.transaction() as tx:
        if (
            pusher.kind == EMAIL_MEDIUM
            and await threepids.find_owner(tx, EMAIL_MEDIUM, pusher.pushkey) != requester.user_id
        ):
            raise MatrixError("This is no address of yours", errcode="M_THREEPID_NOT_FOUND", status=400)
        await pushers.set_pusher(
            tx,
            requester.user_id,
            requester.device_id,
            pusher,
            append=append,
            now_ms=gateway.clock.now_ms(),
            is_switch=_ENABLED in body,
        )
    return json_reply({})


def parse_pusher(body: Mapping[str, Any]) -> Pusher:
    """A pusher that can be stored.

    Raises:
        MissingParam, BadJson, InvalidParam: naming the field that is wrong.
    """
    kind = _required(body, "kind")
    if kind not in ("http", "email"):
        raise InvalidParam("kind must be http, email or null")
    app_id, pushkey = _required(body, "app_id"), _required(body, "pushkey")
    if len(app_id) > MAX_APP_ID_LENGTH:
        raise InvalidParam(f"app_id is longer than {MAX_APP_ID_LENGTH} characters")
    if len(pushkey.encode()) > MAX_PUSHKEY_BYTES:
        raise InvalidParam(f"pushkey is longer than {MAX_PUSHKEY_BYTES} bytes")
    data = body.get("data")
    if data is None:
        raise MissingParam("data is missing")
    if not isinstance(data, Mapping):
        raise BadJson("data must be an object")
    if kind == EMAIL_MEDIUM:
        pushkey = canonical_email(pushkey)
    else:
        _check_url(data.get("url"))
    encoded = orjson.dumps(data)
    if len(encoded) > MAX_DATA_BYTES:
        raise InvalidParam(f"data is larger than {MAX_DATA_BYTES} bytes")
    if not isinstance(is_enabled := body.get(_ENABLED, True), bool):
        raise BadJson(f"{_ENABLED} must be a boolean")
    texts = [_required(body, name) for name in ("app_display_name", "device_display_name", "lang")]
    profile_tag = optional_text(body, "profile_tag")
    if any(len(text) > MAX_TEXT_LENGTH for text in (*texts, profile_tag or "")):
        raise InvalidParam(f"A text is longer than {MAX_TEXT_LENGTH} characters")
    return Pusher(app_id, pushkey, kind, texts[0], texts[1], profile_tag, texts[2], encoded, is_enabled)


def pusher_json(pusher: Pusher) -> dict[str, Any]:
    """A pusher as clients see it."""
    fields: dict[str, Any] = {
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        "kind": pusher.kind,
        "app_display_name": pusher.app_display_name,
        "device_display_name": pusher.device_display_name,
        "lang": pusher.lang,
        "data": orjson.Fragment(pusher.data),
        _ENABLED: pusher.enabled,
        _DEVICE: pusher.device_id,
    }
    if pusher.profile_tag is not None:
        fields["profile_tag"] = pusher.profile_tag
    return fields


def _required(body: Mapping[str, Any], name: str) -> str:
    value = optional_text(body, name)
    if value is None:
        raise MissingParam(f"{name} is missing")
    return value


def _check_url(url: object) -> None:
    if url is None:
        raise MissingParam("data.url is missing")
    if not isinstance(url, str):
        raise BadJson("data.url must be a string")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidParam("data.url is no URL") from error
    if parts.scheme not in ("https", "http") or not parts.netloc:
        raise InvalidParam("data.url must be an HTTPS URL")
    if parts.path != PUSH_GATEWAY_PATH:
        raise InvalidParam(f"data.url must have the path {PUSH_GATEWAY_PATH}")
