"""Device keys and one-time keys: upload, query, claim.

Plain routes: clients call these before each encrypted conversation, with hundreds of users at once.

Spec: C-S API §End-to-End Encryption, §Key management API.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, parse_user_id, server_of
from services.gateway.dependencies import gateway_of
from services.gateway.key_checks import (
    check_device_keys,
    check_fallback_keys,
    check_one_time_keys,
    is_same_key,
    merge_signatures,
)
from services.gateway.key_signatures import check_signatures
from services.gateway.remote_keys import DEFAULT_SECONDS, UNREACHABLE, RemoteKeys
from services.gateway.routing import client_routes, json_object_of, requester_of
from services.gateway.sessions import Wakes
from tessera.fanout import Fanout
from tessera.http.errors import Forbidden, InvalidParam, MatrixError
from tessera.http.replies import json_reply
from tessera.storage import cross_signing, device_changes, device_keys, one_time_keys, user_log, users
from tessera.storage.cross_signing import ServedCrossSigningKey
from tessera.storage.database import Database, Transaction
from tessera.storage.device_changes import DeviceChange
from tessera.storage.device_keys import ServedDeviceKeys
from tessera.storage.one_time_keys import ClaimedKey, ClaimTarget, KeyClash, PublicKey
from tessera.storage.user_log import LogEntry, UserLogKind

# Clients keep about a hundred one-time keys in stock.
MAX_STORED_ONE_TIME_KEYS = 5000
USUAL_ALGORITHM = "signed_curve25519"


class UploadedKeys(NamedTuple):
    """Keys of a device: its identity keys as stored, None where it uploads none, and those for new sessions."""

    device: bytes | None
    one_time: list[PublicKey]
    fallback: list[PublicKey]


NO_KEYS = UploadedKeys(None, [], [])


async def upload_keys(request: Request) -> Response:
    """Publish keys of the session's device."""
    gateway = gateway_of(request)
    requester = await requester_of(request)
    if not requester.device_id:
        raise InvalidParam("Keys belong to a device, and this request is made for none")
    body = await json_object_of(request)
    counts = await store_keys(
        gateway.accounts,
        gateway.fanout,
        requester.user_id,
        requester.device_id,
        body,
        verify=gateway.settings.tessera.verify_key_signatures,
    )
    return json_reply({"one_time_key_counts": counts})


async def query_keys(request: Request) -> Response:
    """The keys of users' devices."""
    gateway = gateway_of(request)
    requester = await requester_of(request)
    body = await json_object_of(request)
    asked = check_query(body)
    reply = await list_keys(
        gateway.accounts, gateway.server_name, requester.user_id, asked, gateway.remote_keys, _seconds_of(body)
    )
    return json_reply(reply)


async def claim_keys(request: Request) -> Response:
    """One-time keys for new sessions."""
    gateway = gateway_of(request)
    await requester_of(request)
    body = await json_object_of(request)
    asked = check_claim(body)
    reply = await take_keys(
        gateway.accounts, gateway.fanout, gateway.server_name, asked, gateway.remote_keys, _seconds_of(body)
    )
    return json_reply(reply)


routes = [
    *client_routes("/keys/upload", upload_keys, methods=["POST"]),
    *client_routes("/keys/query", query_keys, methods=["POST"]),
    *client_routes("/keys/claim", claim_keys, methods=["POST"]),
]


def check_query(body: Mapping[str, Any]) -> dict[UserId, list[str]]:
    """User -> device IDs of a query.

    Raises:
        InvalidParam
    """
    asked: dict[UserId, list[str]] = {}
    for user_id, device_ids in _users_of(body, "device_keys"):
        if not isinstance(device_ids, list) or not all(isinstance(device_id, str) for device_id in device_ids):
            raise InvalidParam("device_keys must map user IDs to lists of device IDs")
        asked[user_id] = device_ids
    return asked


def check_claim(body: Mapping[str, Any]) -> dict[UserId, dict[str, str]]:
    """User -> device ID -> algorithm of a claim.

    Raises:
        InvalidParam
    """
    asked: dict[UserId, dict[str, str]] = {}
    for user_id, devices in _users_of(body, "one_time_keys"):
        if not isinstance(devices, dict) or not all(isinstance(algorithm, str) for algorithm in devices.values()):
            raise InvalidParam("one_time_keys must map user IDs to device IDs to algorithms")
        asked[user_id] = devices
    return asked


def _users_of(body: Mapping[str, Any], field: str) -> list[tuple[UserId, Any]]:
    given = body.get(field)
    if not isinstance(given, Mapping):
        raise InvalidParam(f"{field} must be an object")
    try:
        return [(parse_user_id(user_id), value) for user_id, value in given.items()]
    except InvalidIdentifier as error:
        raise InvalidParam(f"{field}: {error}") from None


async def store_keys(
    accounts: Database,
    fanout: Fanout,
    user_id: UserId,
    device_id: str,
    body: Mapping[str, Any],
    *,
    verify: bool = False,
) -> dict[str, int]:
    """Store a device's keys; answers its one-time key counts. Repeating a request changes nothing.

    Args:
        verify: whether the device must have signed what it uploads.

    Raises:
        InvalidParam: keys of another device, malformed keys, or too many.
        InvalidSignature: a key that the device has not signed.
        MatrixError: a one-time key's name stands for another key already (400).
    """
    keys = check_upload(body, user_id, device_id)
    if verify:
        stored = None
        if keys.device is None and (keys.one_time or keys.fallback):
            async with accounts.reading() as tx:
                stored = await device_keys.find_uploaded(tx, user_id, device_id)
        known = None if stored is None else orjson.loads(stored)
        await asyncio.to_thread(check_signatures, body, user_id, device_id, known)
    async with accounts.transaction() as tx:
        counts, wakes = await put_keys(tx, user_id, device_id, keys)
    await wakes.publish(fanout)
    return {USUAL_ALGORITHM: 0, **counts}


def check_upload(body: Mapping[str, Any], user_id: UserId, device_id: str) -> UploadedKeys:
    """The keys of an upload; those that it leaves out are none. Raises InvalidParam."""
    return UploadedKeys(
        None if body.get("device_keys") is None else check_device_keys(body["device_keys"], user_id, device_id),
        check_one_time_keys(_given(body, "one_time_keys"), "one_time_keys"),
        check_fallback_keys(_given(body, "fallback_keys"), "fallback_keys"),
    )


async def put_keys(
    tx: Transaction, user_id: UserId, device_id: str, keys: UploadedKeys
) -> tuple[dict[str, int], Wakes]:
    """Store keys that were checked; answers the one-time key counts, and what to publish after the COMMIT.

    Raises:
        InvalidParam, MatrixError, Forbidden: as `store_keys`.
    """
    heads: dict[UserId, int] = {}
    if keys != NO_KEYS:
        await device_keys.lock_device(tx, user_id, device_id)
    is_new_device = keys.device is not None and await _set_device_keys(tx, user_id, device_id, keys.device)
    if keys.one_time:
        clashes = await one_time_keys.list_clashes(tx, user_id, device_id, keys.one_time)
        if clashes:
            raise _clash_error(clashes[0])
        await one_time_keys.add_keys(tx, user_id, device_id, keys.one_time)
    if keys.fallback:
        await one_time_keys.set_fallback_keys(tx, user_id, device_id, keys.fallback)
    counts = await one_time_keys.count_keys(tx, user_id, device_id)
    if keys.one_time and max(counts.values(), default=0) > MAX_STORED_ONE_TIME_KEYS:
        raise InvalidParam(f"the device has more than {MAX_STORED_ONE_TIME_KEYS} one-time keys in stock")
    if keys.one_time or keys.fallback:
        heads = await user_log.append(tx, [LogEntry(user_id, UserLogKind.ONE_TIME_KEYS, key=device_id)])
    position = await device_changes.add_changes(tx, [DeviceChange(user_id, device_id)]) if is_new_device else None
    return counts, Wakes(heads, position, (user_id,))


async def list_keys(
    accounts: Database,
    server_name: ServerName,
    reader: UserId,
    asked: Mapping[UserId, Sequence[str]],
    remote: RemoteKeys | None = None,
    seconds: float = DEFAULT_SECONDS,
) -> dict[str, Any]:
    """The device and cross-signing keys of users, as `reader` may see them; contents are orjson Fragments.

    Args:
        asked: user -> device IDs, none for all devices.
        remote: finds the keys of other servers' users; without it these are failures.
        seconds: for each other server.

    A few statements whatever the number of users. A local user who does not exist is left out; one without devices
    has an empty object.
    """
    local, failures = _split_by_server(asked, server_name)
    whole = [user_id for user_id in local if not asked[user_id]]
    single = [(user_id, device_id) for user_id in local for device_id in asked[user_id]]
    async with accounts.reading() as tx:
        rows = await device_keys.list_of_users(tx, whole) if whole else []
        if single:
            rows += await device_keys.list_of_devices(tx, single)
        signing = await cross_signing.list_visible(tx, local, reader) if local else []
        devices: dict[str, dict[str, orjson.Fragment]] = {}
        for row in rows:
            devices.setdefault(row.user_id, {})[row.device_id] = _served_device(row)
        absent = [user_id for user_id in local if user_id not in devices]
        if absent:
            for user_id in await users.list_existing(tx, absent):
                devices[user_id] = {}
    by_usage: dict[str, dict[str, orjson.Fragment]] = {"master": {}, "self_signing": {}, "user_signing": {}}
    for key in signing:
        by_usage[key.usage][key.user_id] = _served_cross_signing_key(key, reader)
    if remote is not None:
        others = await remote.query({user: asked[user] for user in asked if server_of(user) != server_name}, seconds)
        failures = others.failures
        for user_id, theirs in others.devices.items():
            devices[user_id] = {name: orjson.Fragment(keys) for name, keys in theirs.items()}
        by_usage["master"] |= {user_id: orjson.Fragment(key) for user_id, key in others.master.items()}
        by_usage["self_signing"] |= {user_id: orjson.Fragment(key) for user_id, key in others.self_signing.items()}
    return {
        "device_keys": devices,
        "failures": failures,
        **{f"{usage}_keys": keys for usage, keys in by_usage.items()},
    }


async def take_keys(
    accounts: Database,
    fanout: Fanout,
    server_name: ServerName,
    asked: Mapping[UserId, Mapping[str, str]],
    remote: RemoteKeys | None = None,
    seconds: float = DEFAULT_SECONDS,
) -> dict[str, Any]:
    """Take one one-time key (else the fallback key) for each device that is asked for.

    Args:
        asked: user -> device ID -> algorithm.
    """
    local, failures = _split_by_server(asked, server_name)
    targets: list[ClaimTarget] = [(user, device, name) for user in local for device, name in asked[user].items()]
    claimed: list[ClaimedKey] = []
    heads: dict[UserId, int] = {}
    if targets:
        async with accounts.transaction() as tx:
            claimed = await one_time_keys.claim_keys(tx, targets)
            changed = sorted({(key.user_id, key.device_id) for key in claimed if key.changes_sync})
            heads = await user_log.append(
                tx, [LogEntry(user, UserLogKind.ONE_TIME_KEYS, key=device) for user, device in changed]
            )
    if heads:
        await fanout.publish_user_wakes(user_log.wakes_of(heads))
    keys: dict[str, dict[str, dict[str, orjson.Fragment]]] = {}
    for key in claimed:
        device = keys.setdefault(key.user_id, {}).setdefault(key.device_id, {})
        device[f"{key.algorithm}:{key.key_id}"] = orjson.Fragment(key.content)
    if remote is not None:
        others = {user: asked[user] for user in asked if server_of(user) != server_name}
        theirs, failures = await remote.claim(others, seconds)
        for user_id, by_device in theirs.items():
            keys[user_id] = {
                device_id: {name: orjson.Fragment(one) for name, one in named.items()}
                for device_id, named in by_device.items()
            }
    return {"one_time_keys": keys, "failures": failures}


def _seconds_of(body: Mapping[str, Any]) -> float:
    """How long other servers are waited for."""
    timeout = body.get("timeout")
    return timeout / 1000 if type(timeout) is int and timeout > 0 else DEFAULT_SECONDS


def _given(body: Mapping[str, Any], field: str) -> Any:
    """A field that may be left out or null; some clients send both."""
    value = body.get(field)
    return {} if value is None else value


async def _set_device_keys(tx: Transaction, user_id: UserId, device_id: str, content: bytes) -> bool:
    """Store device keys unless they are there already; whether anything is new."""
    stored = await device_keys.find_uploaded(tx, user_id, device_id)
    if stored == content:
        return False
    signed: bytes | None = None
    if stored is not None and is_same_key(orjson.loads(stored), orjson.loads(content)):
        signatures = await cross_signing.list_own_signatures(tx, user_id, [device_id])
        if signatures:
            signed = merge_signatures(orjson.loads(content), user_id, signatures[device_id])
    else:
        # What was signed under this name before was another key.
        await cross_signing.delete_signatures_on(tx, user_id, [device_id])
        if device_id in {key.key_id for key in (await cross_signing.find_keys(tx, user_id)).values()}:
            raise Forbidden("The device ID is one of the user's cross-signing keys")
    await device_keys.set_keys(tx, user_id, device_id, content, signed)
    return True


def _clash_error(clash: KeyClash) -> MatrixError:
    # Clients recognise this wording and report both keys.
    return MatrixError(
        f"One time key {clash.name} already exists. Old key: {clash.stored.decode()}; new key: {clash.given.decode()}",
        errcode="M_UNKNOWN",
        status=400,
    )


def _served_device(row: ServedDeviceKeys) -> orjson.Fragment:
    """Splice `unsigned` into the stored object, which is never empty."""
    name = b"" if row.display_name is None else b'"device_display_name":' + orjson.dumps(row.display_name)
    return orjson.Fragment(b'%b,"unsigned":{%b}}' % (row.content[:-1], name))


def _served_cross_signing_key(key: ServedCrossSigningKey, reader: UserId) -> orjson.Fragment:
    if not key.private_signatures:
        return orjson.Fragment(key.content)
    return orjson.Fragment(merge_signatures(orjson.loads(key.content), reader, key.private_signatures))


def _split_by_server(asked: Iterable[UserId], server_name: ServerName) -> tuple[list[UserId], dict[str, Any]]:
    """Our own users among those asked for, and the failures to report for everybody else's servers."""
    local: list[UserId] = []
    failures: dict[str, Any] = {}
    for user_id in asked:
        server = server_of(user_id)
        if server == server_name:
            local.append(user_id)
        else:
            failures[server] = UNREACHABLE
    return local, failures
