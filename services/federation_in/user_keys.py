"""Our users' devices and keys, for other servers.

Device names are not told. Spec: S-S API §Device Management, §End-to-End Encryption.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, UserId, parse_user_id, server_of
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.routing import V1, CurrentPeer, peer_router
from tessera.http.errors import BadJson, InvalidParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import cross_signing, device_changes, device_keys, one_time_keys, user_log, users
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind

router = peer_router()

MAX_USERS = 1_000
MAX_DEVICES = 10_000  # in one request, over all users


@router.get(V1 + "/user/devices/{user_id}")
async def get_user_devices(user_id: str, _peer: CurrentPeer, deps: FederationInDep) -> Response:
    """All devices of a user that have keys, as of `stream_id`."""
    user = _user_of(deps, user_id)
    async with deps.accounts.snapshot() as tx:
        if not await users.list_existing(tx, [user]):
            raise NotFound("There is no such user")
        stream_id = await device_changes.find_last(tx, user)
        rows = await device_keys.list_of_users(tx, [user])
        signing = await _signing_keys(tx, [user])
    devices = [{"device_id": row.device_id, "keys": orjson.Fragment(row.content)} for row in rows]
    reply: dict[str, Any] = {"user_id": user, "stream_id": stream_id, "devices": devices}
    for usage, keys in signing.items():
        if user in keys:
            reply[f"{usage}_key"] = keys[user]
    return json_reply(reply)


@router.post(V1 + "/user/keys/query")
async def query_user_encryption_keys(peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The keys of users' devices; whoever is not of this server is left out."""
    asked = _asked(deps, peer.content, "device_keys", list)
    whole = [user for user, devices in asked.items() if not devices]
    single = [(user, device) for user, devices in asked.items() for device in devices if isinstance(device, str)]
    async with deps.accounts.reading() as tx:
        rows = await device_keys.list_of_users(tx, whole) if whole else []
        if single:
            rows += await device_keys.list_of_devices(tx, single[:MAX_DEVICES])
        existing = await users.list_existing(tx, list(asked)) if asked else []
        signing = await _signing_keys(tx, list(asked))
    devices: dict[UserId, dict[str, orjson.Fragment]] = {user: {} for user in existing}
    for row in rows:
        devices.setdefault(row.user_id, {})[row.device_id] = orjson.Fragment(row.content)
    return json_reply({"device_keys": devices, **{f"{usage}_keys": keys for usage, keys in signing.items()}})


@router.post(V1 + "/user/keys/claim")
async def claim_user_encryption_keys(peer: CurrentPeer, deps: FederationInDep) -> Response:
    """A one-time key of each device, else its fallback key."""
    asked = _asked(deps, peer.content, "one_time_keys", dict)
    targets = [
        (user, device, algorithm)
        for user, devices in asked.items()
        for device, algorithm in devices.items()
        if isinstance(algorithm, str)
    ]
    keys: dict[str, dict[str, dict[str, orjson.Fragment]]] = {}
    heads: dict[UserId, int] = {}
    if targets:
        async with deps.accounts.transaction() as tx:
            claimed = await one_time_keys.claim_keys(tx, targets[:MAX_DEVICES])
            changed = sorted({(key.user_id, key.device_id) for key in claimed if key.changes_sync})
            heads = await user_log.append(
                tx, [LogEntry(user, UserLogKind.ONE_TIME_KEYS, key=device) for user, device in changed]
            )
        for key in claimed:
            device = keys.setdefault(key.user_id, {}).setdefault(key.device_id, {})
            device[f"{key.algorithm}:{key.key_id}"] = orjson.Fragment(key.content)
    if heads:
        await deps.fanout.publish_user_wakes(user_log.wakes_of(heads))
    return json_reply({"one_time_keys": keys})


async def _signing_keys(tx: Transaction, user_ids: Sequence[UserId]) -> dict[str, dict[UserId, orjson.Fragment]]:
    """The public cross-signing keys by usage; what users signed of others is nobody else's business."""
    keys: dict[str, dict[UserId, orjson.Fragment]] = {"master": {}, "self_signing": {}}
    for key in await cross_signing.list_visible(tx, user_ids, None) if user_ids else []:
        if key.usage in keys:
            keys[key.usage][key.user_id] = orjson.Fragment(key.content)
    return keys


def _asked(
    deps: FederationInDeps, content: Mapping[str, Any], field: str, kind: type[list[Any]] | type[dict[str, Any]]
) -> dict[UserId, Any]:
    given = content.get(field)
    if not isinstance(given, Mapping):
        raise BadJson(f"{field} must be an object")
    if len(given) > MAX_USERS:
        raise InvalidParam(f"more than {MAX_USERS} users")
    asked: dict[UserId, Any] = {}
    for name, value in given.items():
        if not isinstance(value, kind):
            raise BadJson(f"{field} has a wrong value")
        try:
            user = parse_user_id(name)
        except InvalidIdentifier:
            continue
        if server_of(user) == deps.server_name:
            asked[user] = value
    return asked


def _user_of(deps: FederationInDeps, user_id: str) -> UserId:
    try:
        user = parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from None
    if server_of(user) != deps.server_name:
        raise InvalidParam("The user is not of this server")
    return user
