"""Profiles: display name, avatar, time zone and whatever else users tell about themselves.

The two GETs are plain routes: clients ask for profiles all the time.

Spec: C-S API §Profiles.
"""

import asyncio
import re
from contextlib import suppress
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, UserId, parse_user_id, server_of
from services.gateway import profile_propagation
from services.gateway.dependencies import GatewayDep, GatewayDeps, gateway_of
from services.gateway.routing import CurrentRequester, JsonObject, Requester, client_router, client_routes, requester_of
from tessera.federation.errors import PeerError
from tessera.http.errors import (
    BadJson,
    Forbidden,
    GuestAccessForbidden,
    InvalidParam,
    MatrixError,
    MissingParam,
    MissingToken,
    NotFound,
    UnknownToken,
)
from tessera.http.replies import json_bytes_reply, json_reply
from tessera.storage import profiles, user_rooms
from tessera.storage.profiles import Profile

router = client_router()
log = structlog.get_logger(__name__)

MAX_PROFILE_BYTES = 65_536
MAX_KEY_BYTES = 255
MAX_DISPLAYNAME_LENGTH = 256  # characters, as Synapse has it
MAX_AVATAR_URL_LENGTH = 1_000
PROPAGATION_SECONDS = 10.0  # after that the answer goes out and a sweep does the rest

_KEY = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+")
_IN_EVENTS = ("displayname", "avatar_url")
PEER_PATH = "/_matrix/federation/v1/query/profile"
PEER_SECONDS = 10.0


async def get_user_profile(request: Request) -> Response:
    """The whole profile of a user; at most one query, shared with those who ask meanwhile."""
    gateway = gateway_of(request)
    await _require_may_read(request, gateway)
    await _check_rate(request, gateway)
    user_id = request.path_params["user_id"]
    if (elsewhere := _of_another_server(gateway, user_id)) is not None:
        return json_reply(await ask_profile(gateway, elsewhere))
    return json_bytes_reply(profile_bytes(await find_local_profile(gateway, user_id)))


async def get_profile_field(request: Request) -> Response:
    """One field of a profile."""
    gateway = gateway_of(request)
    await _require_may_read(request, gateway)
    await _check_rate(request, gateway)
    key = check_key(request.path_params["key_name"])
    user_id = request.path_params["user_id"]
    if (elsewhere := _of_another_server(gateway, user_id)) is not None:
        fields = await ask_profile(gateway, elsewhere, key)
    else:
        fields = profile_fields(await find_local_profile(gateway, user_id))
    if key not in fields:
        raise NotFound("The profile has no such field")
    return json_reply({key: fields[key]})


routes = [
    *client_routes("/profile/{user_id}", get_user_profile, methods=["GET"]),
    *client_routes("/profile/{user_id}/{key_name}", get_profile_field, methods=["GET"]),
]


@router.put("/profile/{user_id}/{key_name}")
async def set_profile_field(
    user_id: str, key_name: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Set one field of the user's own profile."""
    _require_own(requester, user_id, key_name)
    check_key(key_name)
    if key_name not in body:
        raise MissingParam(f"{key_name} is missing")
    value = check_value(key_name, body[key_name])
    gateway.limits.check("rc_message", requester.user_id)  # a name goes into all rooms, as a message does
    await change_field(gateway, requester.user_id, key_name, value)
    return json_reply({})


@router.delete("/profile/{user_id}/{key_name}")
async def delete_profile_field(
    user_id: str, key_name: str, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Delete one field of the user's own profile, whether it is there or not."""
    _require_own(requester, user_id, key_name)
    key = check_key(key_name)
    gateway.limits.check("rc_message", requester.user_id)
    await change_field(gateway, requester.user_id, key, _ABSENT)
    return json_reply({})


_ABSENT: Any = object()


async def change_field(
    gateway: GatewayDeps, user_id: UserId, key: str, value: Any, *, by_operator: bool = False
) -> None:
    """Set a field, or with _ABSENT delete it; a new name or avatar goes into the user's rooms before the answer.

    Raises:
        MatrixError: M_PROFILE_TOO_LARGE; Forbidden: the operator manages the field.
    """
    if not by_operator:
        _require_changeable(gateway, key)
    revision = None
    async with gateway.accounts.transaction() as tx:
        old = await profiles.lock_profile(tx, user_id)
        if old is None:
            raise NotFound("The user has no profile")
        new = _with_field(old, key, value)
        if new == old:
            return
        if len(profile_bytes(new)) > MAX_PROFILE_BYTES:
            raise MatrixError(
                "The profile would exceed its maximum size of 64 KiB", errcode="M_PROFILE_TOO_LARGE", status=400
            )
        await profiles.set_profile(tx, user_id, new)
        if key in _IN_EVENTS:
            revision = await profiles.add_debt(tx, user_id)
    if revision is not None:
        await _propagate(gateway, user_id, revision)


async def _propagate(gateway: GatewayDeps, user_id: UserId, revision: int) -> None:
    """Bring the change into the rooms, for a while; the debt stays for the sweep if that is not enough."""
    try:
        async with asyncio.timeout(PROPAGATION_SECONDS):
            await profile_propagation.settle(gateway.accounts, gateway.propagate_profile, user_id, revision)
    except (TimeoutError, MatrixError) as error:
        log.info("profile not yet in all rooms", user_id=user_id, reason=type(error).__name__)


async def find_local_profile(gateway: GatewayDeps, user_id: str) -> Profile:
    """The profile of one of our users.

    Raises:
        InvalidParam: that is no user ID.
        NotFound: no such user here.
    """
    try:
        parsed = parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from error
    if server_of(parsed) != gateway.server_name:
        raise NotFound("The user is not known to this server")
    profile = await gateway.profile_lookups.find(parsed)
    if profile is None and gateway.bridges is not None:
        await gateway.bridges.make_users([parsed])
        profile = await gateway.profile_lookups.find(parsed)
    if profile is None:
        raise NotFound("There is no such user")
    return profile


def _of_another_server(gateway: GatewayDeps, user_id: str) -> UserId | None:
    try:
        parsed = parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from error
    return parsed if gateway.peers is not None and server_of(parsed) != gateway.server_name else None


async def ask_profile(gateway: GatewayDeps, user_id: UserId, key: str | None = None) -> dict[str, Any]:
    """The profile of a user of another server, as that one tells it; or one field of it.

    Spec: S-S API §Querying for information.

    Raises:
        NotFound: there is no such user, or the server cannot be asked.
    """
    if gateway.peers is None:
        raise NotFound("The user is not known to this server")
    query = {"user_id": user_id} | ({} if key is None else {"field": key})
    try:
        answer = await gateway.peers.get(
            server_of(user_id), PEER_PATH, query, timeout_s=PEER_SECONDS, max_bytes=2 * MAX_PROFILE_BYTES
        )
    except PeerError as error:
        log.info("profile of another server not to be had", user_id=user_id, error=str(error))
        raise NotFound("The user's profile cannot be had from their server") from None
    fields = {name: value for name, value in answer.items() if key is None or name == key}
    return {name: value for name, value in fields.items() if name not in _IN_EVENTS or isinstance(value, str)}


def profile_fields(profile: Profile) -> dict[str, Any]:
    """All fields that are set, by name."""
    fields: dict[str, Any] = {} if profile.custom is None else orjson.loads(profile.custom)
    if profile.displayname is not None:
        fields["displayname"] = profile.displayname
    if profile.avatar_url is not None:
        fields["avatar_url"] = profile.avatar_url
    return fields


def profile_bytes(profile: Profile) -> bytes:
    """The profile as GET /profile answers it."""
    if profile.custom is None:
        return orjson.dumps(profile_fields(profile))
    common = orjson.dumps(profile_fields(Profile(profile.displayname, profile.avatar_url, None)))
    if len(common) == len(b"{}"):
        return profile.custom
    return common[:-1] + b"," + profile.custom[1:]


def check_key(key: str) -> str:
    """A name that a field may have.

    Spec: Appendices §Common Namespaced Identifier Grammar.

    Raises:
        MatrixError: M_KEY_TOO_LARGE.
        InvalidParam: another name.
    """
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise MatrixError(f"The key is longer than {MAX_KEY_BYTES} bytes", errcode="M_KEY_TOO_LARGE", status=400)
    if key not in _IN_EVENTS and _KEY.fullmatch(key) is None:
        raise InvalidParam("Invalid profile key")
    return key


def check_value(key: str, value: Any) -> Any:
    """A value that the field may have; an empty name or avatar takes it away, as clients have always done.

    Raises:
        BadJson, InvalidParam: it is of another type or too long.
    """
    if key in ("displayname", "avatar_url", "m.tz") and not isinstance(value, str):
        raise BadJson(f"{key} must be a string")
    if key == "displayname" and len(value) > MAX_DISPLAYNAME_LENGTH:
        raise InvalidParam(f"displayname is longer than {MAX_DISPLAYNAME_LENGTH} characters")
    if key == "avatar_url":
        if len(value) > MAX_AVATAR_URL_LENGTH:
            raise InvalidParam(f"avatar_url is longer than {MAX_AVATAR_URL_LENGTH} characters")
        if value and not value.startswith("mxc://"):
            raise InvalidParam("avatar_url must be an mxc:// URI")
    return value if value != "" or key not in _IN_EVENTS else _ABSENT


def _with_field(profile: Profile, key: str, value: Any) -> Profile:
    plain = None if value is _ABSENT else value
    if key == "displayname":
        return Profile(plain, profile.avatar_url, profile.custom)
    if key == "avatar_url":
        return Profile(profile.displayname, plain, profile.custom)
    custom: dict[str, Any] = {} if profile.custom is None else orjson.loads(profile.custom)
    if value is _ABSENT:
        custom.pop(key, None)
    else:
        custom[key] = value
    return Profile(profile.displayname, profile.avatar_url, orjson.dumps(custom) if custom else None)


def _require_changeable(gateway: GatewayDeps, key: str) -> None:
    settings = gateway.settings
    if (key == "displayname" and not settings.enable_set_displayname) or (
        key == "avatar_url" and not settings.enable_set_avatar_url
    ):
        raise Forbidden(f"{key} is managed by the server's operator")


def _require_own(requester: Requester, user_id: str, key: str) -> None:
    if user_id != requester.user_id:
        raise Forbidden("Only your own profile can be changed")
    if requester.is_guest and key != "displayname":
        raise GuestAccessForbidden("Guests may change their display name only")


async def _check_rate(request: Request, gateway: GatewayDeps) -> None:
    """Bound the reads of one user, or of one address where nobody says who asks."""
    client = request.client
    asker = "" if client is None else client.host
    if "authorization" in request.headers:
        with suppress(MissingToken, UnknownToken):
            asker = (await requester_of(request)).user_id
    gateway.limits.check("rc_profile", asker)


async def _require_may_read(request: Request, gateway: GatewayDeps) -> None:
    """Everybody may, unless the operator wants a login, and perhaps a room that both are in."""
    if not gateway.settings.require_auth_for_profile_requests:
        return
    requester = await requester_of(request)
    target = request.path_params["user_id"]
    if gateway.settings.limit_profile_requests_to_users_who_share_rooms and target != requester.user_id:
        async with gateway.accounts.reading() as tx:
            if not await user_rooms.shares_room(tx, requester.user_id, target):
                raise Forbidden("Profiles are shown to people in the same rooms only")
