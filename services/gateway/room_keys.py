"""Server-side key backups.

Spec: C-S API §Server-side key backups.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import orjson
from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.dependencies import AccountsDep
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.http.errors import InvalidParam, MatrixError, NotFound
from tessera.http.replies import json_reply
from tessera.storage import key_backups
from tessera.storage.database import Database, Transaction
from tessera.storage.key_backups import BackedUpSession, BackupCounters, BackupVersion

MAX_SAFE_INTEGER = 2**53 - 1
# Room and session IDs are opaque here, but they are parts of an index key.
MAX_ID_LENGTH = 255
MAX_VERSION_DIGITS = 18

Scope = tuple[str | None, str | None]  # (room, session); None: all of them
VersionQuery = Annotated[str, Query(alias="version")]

router = client_router()


@router.post("/room_keys/version")
async def post_room_keys_version(body: JsonObject, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """Begin a new backup."""
    return json_reply({"version": await create_backup(accounts, requester.user_id, body)})


@router.get("/room_keys/version")
async def get_room_keys_version_current(requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """The current backup."""
    return json_reply(await get_backup(accounts, requester.user_id, None))


@router.get("/room_keys/version/{version}")
async def get_room_keys_version(version: str, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """One backup."""
    return json_reply(await get_backup(accounts, requester.user_id, version))


@router.put("/room_keys/version/{version}")
async def put_room_keys_version(
    version: str, body: JsonObject, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """Replace a backup's auth_data."""
    await update_backup(accounts, requester.user_id, version, body)
    return json_reply({})


@router.delete("/room_keys/version/{version}")
async def delete_room_keys_version(version: str, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """Delete a backup with its keys."""
    await delete_backup(accounts, requester.user_id, version)
    return json_reply({})


@router.put("/room_keys/keys")
async def put_room_keys(
    version: VersionQuery, body: JsonObject, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """Store keys of several rooms."""
    return _counters_reply(await put_sessions(accounts, requester.user_id, version, check_rooms(body)))


@router.get("/room_keys/keys")
async def get_room_keys(version: VersionQuery, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """All keys of a backup."""
    rooms = await get_sessions(accounts, requester.user_id, version, (None, None))
    return json_reply({"rooms": {room_id: {"sessions": sessions} for room_id, sessions in rooms.items()}})


@router.delete("/room_keys/keys")
async def delete_room_keys(version: VersionQuery, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """Delete all keys of a backup."""
    return _counters_reply(await delete_sessions(accounts, requester.user_id, version, (None, None)))


@router.put("/room_keys/keys/{room_id}")
async def put_room_keys_by_room_id(
    room_id: str, version: VersionQuery, body: JsonObject, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """Store keys of one room."""
    return _counters_reply(await put_sessions(accounts, requester.user_id, version, check_room(room_id, body)))


@router.get("/room_keys/keys/{room_id}")
async def get_room_keys_by_room_id(
    room_id: str, version: VersionQuery, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """The keys of one room."""
    rooms = await get_sessions(accounts, requester.user_id, version, (room_id, None))
    return json_reply({"sessions": rooms.get(room_id, {})})


@router.delete("/room_keys/keys/{room_id}")
async def delete_room_keys_by_room_id(
    room_id: str, version: VersionQuery, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """Delete the keys of one room."""
    return _counters_reply(await delete_sessions(accounts, requester.user_id, version, (room_id, None)))


# A session ID is base64 and may hold slashes: it takes the rest of the path.
@router.put("/room_keys/keys/{room_id}/{session_id:path}")
async def put_room_key_by_session_id(
    room_id: str,
    session_id: str,
    version: VersionQuery,
    body: JsonObject,
    requester: CurrentRequester,
    accounts: AccountsDep,
) -> Response:
    """Store one key."""
    session = check_session(room_id, session_id, body)
    return _counters_reply(await put_sessions(accounts, requester.user_id, version, [session]))


@router.get("/room_keys/keys/{room_id}/{session_id:path}")
async def get_room_key_by_session_id(
    room_id: str, session_id: str, version: VersionQuery, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """One key."""
    rooms = await get_sessions(accounts, requester.user_id, version, (room_id, session_id))
    if not rooms:
        raise NotFound("Key not found")
    return json_reply(rooms[room_id][session_id])


@router.delete("/room_keys/keys/{room_id}/{session_id:path}")
async def delete_room_key_by_session_id(
    room_id: str, session_id: str, version: VersionQuery, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """Delete one key."""
    return _counters_reply(await delete_sessions(accounts, requester.user_id, version, (room_id, session_id)))


async def create_backup(accounts: Database, user_id: UserId, body: Mapping[str, Any]) -> str:
    """Begin a new backup, which becomes the current one; answers its version."""
    algorithm, auth_data = _check_version_body(body)
    async with accounts.transaction() as tx:
        return str(await key_backups.add_version(tx, user_id, algorithm, auth_data))


async def get_backup(accounts: Database, user_id: UserId, version: str | None) -> dict[str, Any]:
    """What is known about a version, or about the current one (None).

    Raises:
        NotFound
    """
    async with accounts.reading() as tx:
        if version is None:
            backup = await key_backups.find_current(tx, user_id)
            if backup is None:
                raise NotFound("No current backup version")
        else:
            backup = await _get_version(tx, user_id, version)
    return {
        "algorithm": backup.algorithm,
        "auth_data": orjson.Fragment(backup.auth_data),
        "count": backup.session_count,
        "etag": str(backup.etag),
        "version": str(backup.version),
    }


async def update_backup(accounts: Database, user_id: UserId, version: str, body: Mapping[str, Any]) -> None:
    """Replace a version's auth_data.

    Raises:
        NotFound
        InvalidParam: another algorithm, or another version in the body.
    """
    algorithm, auth_data = _check_version_body(body)
    if body.get("version", version) != version:
        raise InvalidParam("version is not the one in the path")
    async with accounts.transaction() as tx:
        await key_backups.lock_user(tx, user_id)
        backup = await _get_version(tx, user_id, version)
        if backup.algorithm != algorithm:
            raise InvalidParam("algorithm does not match the backup's")
        await key_backups.set_auth_data(tx, user_id, backup.version, auth_data)


async def delete_backup(accounts: Database, user_id: UserId, version: str) -> None:
    """Delete a version with its keys; a deleted one may be deleted again.

    Raises:
        NotFound: there never was such a version.
    """
    async with accounts.transaction() as tx:
        await key_backups.lock_user(tx, user_id)
        backup = await key_backups.find_version(tx, user_id, _parse_version(version))
        if backup is None:
            raise NotFound("Unknown backup version")
        if not backup.deleted:
            await key_backups.delete_version(tx, user_id, backup.version)


async def put_sessions(
    accounts: Database, user_id: UserId, version: str, sessions: Iterable[BackedUpSession]
) -> BackupCounters:
    """Store keys in the current backup, each where it is better than what is there.

    Raises:
        NotFound: there is no such backup.
        MatrixError: it is not the current one (403 M_WRONG_ROOM_KEYS_VERSION).
    """
    async with accounts.transaction() as tx:
        await key_backups.lock_user(tx, user_id)
        backup = await _get_version(tx, user_id, version)
        current = await key_backups.find_current(tx, user_id)
        if current is not None and current.version != backup.version:
            raise MatrixError(
                "Wrong backup version.",
                errcode="M_WRONG_ROOM_KEYS_VERSION",
                status=403,
                fields={"current_version": str(current.version)},
            )
        return await key_backups.add_sessions(tx, user_id, backup.version, list(sessions))


async def get_sessions(
    accounts: Database, user_id: UserId, version: str, scope: Scope
) -> dict[str, dict[str, dict[str, Any]]]:
    """The keys of a version, of one room, or one key: room -> session -> key data with Fragments.

    Raises:
        NotFound: there is no such backup.
    """
    async with accounts.reading() as tx:
        backup = await _get_version(tx, user_id, version)
        sessions = await key_backups.list_sessions(tx, user_id, backup.version, *scope)
    rooms: dict[str, dict[str, dict[str, Any]]] = {}
    for one in sessions:
        rooms.setdefault(one.room_id, {})[one.session_id] = {
            "first_message_index": one.first_message_index,
            "forwarded_count": one.forwarded_count,
            "is_verified": one.is_verified,
            "session_data": orjson.Fragment(one.session_data),
        }
    return rooms


async def delete_sessions(accounts: Database, user_id: UserId, version: str, scope: Scope) -> BackupCounters:
    """Delete the keys that `get_sessions` would give.

    Raises:
        NotFound: there is no such backup.
    """
    async with accounts.transaction() as tx:
        await key_backups.lock_user(tx, user_id)
        backup = await _get_version(tx, user_id, version)
        return await key_backups.delete_sessions(tx, user_id, backup.version, *scope)


def check_rooms(body: Mapping[str, Any]) -> list[BackedUpSession]:
    """The sessions of a body {rooms: {room: {sessions: {...}}}}.

    Raises:
        InvalidParam
    """
    rooms = _mapping(body.get("rooms"), "rooms")
    return [one for room_id, room in rooms.items() for one in check_room(room_id, _mapping(room, "rooms"))]


def check_room(room_id: str, body: Mapping[str, Any]) -> list[BackedUpSession]:
    """The sessions of a body {sessions: {session: key data}} of one room.

    Raises:
        InvalidParam
    """
    sessions = _mapping(body.get("sessions"), "sessions")
    return [check_session(room_id, session_id, data) for session_id, data in sessions.items()]


def check_session(room_id: str, session_id: str, given: Any) -> BackedUpSession:
    """One key with its metadata.

    Raises:
        InvalidParam
    """
    if max(len(room_id), len(session_id)) > MAX_ID_LENGTH:
        raise InvalidParam("a room or session ID is too long")
    data = _mapping(given, "the key data")
    verified = data.get("is_verified")
    if not isinstance(verified, bool):
        raise InvalidParam("is_verified must be a boolean")
    return BackedUpSession(
        room_id,
        session_id,
        _count(data, "first_message_index"),
        _count(data, "forwarded_count"),
        verified,
        orjson.dumps(_mapping(data.get("session_data"), "session_data")),
    )


async def _get_version(tx: Transaction, user_id: UserId, version: str) -> BackupVersion:
    backup = await key_backups.find_version(tx, user_id, _parse_version(version))
    if backup is None or backup.deleted:
        raise NotFound("Unknown backup version")
    return backup


def _parse_version(version: str) -> int:
    if not (version.isascii() and version.isdigit() and len(version) <= MAX_VERSION_DIGITS):
        raise NotFound("Unknown backup version")
    return int(version)


def _check_version_body(body: Mapping[str, Any]) -> tuple[str, bytes]:
    algorithm = body.get("algorithm")
    if not isinstance(algorithm, str):
        raise InvalidParam("algorithm must be a string")
    return algorithm, orjson.dumps(_mapping(body.get("auth_data"), "auth_data"))


def _count(data: Mapping[str, Any], field: str) -> int:
    value = data.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SAFE_INTEGER:
        raise InvalidParam(f"{field} must be an integer that is not negative")
    return value


def _counters_reply(counters: BackupCounters) -> Response:
    return json_reply({"etag": str(counters.etag), "count": counters.session_count})


def _mapping(given: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise InvalidParam(f"{field} must be an object")
    return given
