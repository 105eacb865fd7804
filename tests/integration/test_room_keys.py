"""Key backups on PostgreSQL. Spec: C-S API §Server-side key backups."""

from typing import Any

import orjson
import pytest
from key_material import ALICE, BOB

from services.gateway import room_keys
from tessera.http.errors import InvalidParam, MatrixError, NotFound
from tessera.storage.database import Database
from tessera.storage.key_backups import BackupCounters

ROOM, OTHER_ROOM = "!room:example.org", "!other:example.org"
ALGORITHM = "m.megolm_backup.v1.curve25519-aes-sha2"
NEW_BACKUP = {"algorithm": ALGORITHM, "auth_data": {"public_key": "abc"}}


def key(index: int = 0, forwarded: int = 0, *, verified: bool = False, data: str = "x") -> dict[str, Any]:
    return {
        "first_message_index": index,
        "forwarded_count": forwarded,
        "is_verified": verified,
        "session_data": {"ciphertext": data},
    }


async def put(accounts: Database, version: str, session: str = "s", room: str = ROOM, **data: Any) -> BackupCounters:
    return await room_keys.put_sessions(accounts, ALICE, version, [room_keys.check_session(room, session, key(**data))])


async def stored(accounts: Database, version: str, room: str | None = None, session: str | None = None) -> Any:
    return orjson.loads(orjson.dumps(await room_keys.get_sessions(accounts, ALICE, version, (room, session))))


async def test_versions_live_and_die(accounts: Database) -> None:
    with pytest.raises(NotFound):
        await room_keys.get_backup(accounts, ALICE, None)
    assert [await room_keys.create_backup(accounts, ALICE, NEW_BACKUP) for _ in range(2)] == ["1", "2"]
    assert await room_keys.create_backup(accounts, BOB, NEW_BACKUP) == "1"
    current = orjson.loads(orjson.dumps(await room_keys.get_backup(accounts, ALICE, None)))
    assert current == {**NEW_BACKUP, "version": "2", "count": 0, "etag": "0"}
    await room_keys.update_backup(accounts, ALICE, "1", {**NEW_BACKUP, "auth_data": {"new": 1}, "version": "1"})
    assert orjson.loads(orjson.dumps(await room_keys.get_backup(accounts, ALICE, "1")))["auth_data"] == {"new": 1}
    for _ in range(2):
        await room_keys.delete_backup(accounts, ALICE, "2")
    assert (await room_keys.get_backup(accounts, ALICE, None))["version"] == "1"
    with pytest.raises(NotFound):
        await room_keys.get_backup(accounts, ALICE, "2")
    assert await room_keys.create_backup(accounts, ALICE, NEW_BACKUP) == "3", "a number is not given twice"


@pytest.mark.parametrize("version", ["9", "x", "", "-1", "1" * 40, "²"])
async def test_unknown_versions_are_not_found(accounts: Database, version: str) -> None:
    with pytest.raises(NotFound):
        await room_keys.get_backup(accounts, ALICE, version)
    with pytest.raises(NotFound):
        await room_keys.delete_backup(accounts, ALICE, version)
    with pytest.raises(NotFound):
        await put(accounts, version)


@pytest.mark.parametrize("change", [{"algorithm": "other"}, {"version": "7"}, {"auth_data": 1}, {"algorithm": None}])
async def test_only_auth_data_may_change(accounts: Database, change: dict[str, Any]) -> None:
    await room_keys.create_backup(accounts, ALICE, NEW_BACKUP)
    with pytest.raises(InvalidParam):
        await room_keys.update_backup(accounts, ALICE, "1", {**NEW_BACKUP, **change})


async def test_the_better_key_stays(accounts: Database) -> None:
    version = await room_keys.create_backup(accounts, ALICE, NEW_BACKUP)
    steps: list[tuple[dict[str, Any], str]] = [
        ({"index": 5, "forwarded": 2, "data": "first"}, "first"),
        ({"index": 6, "forwarded": 0, "data": "higher index"}, "first"),
        ({"index": 5, "forwarded": 2, "data": "equal"}, "first"),
        ({"index": 5, "forwarded": 1, "data": "fewer forwards"}, "fewer forwards"),
        ({"index": 4, "forwarded": 9, "data": "lower index"}, "lower index"),
        ({"index": 9, "forwarded": 9, "verified": True, "data": "verified"}, "verified"),
        ({"index": 0, "forwarded": 0, "data": "unverified"}, "verified"),
    ]
    etags = []
    for given, kept in steps:
        counters = await put(accounts, version, **given)
        etags.append(counters.etag)
        assert counters.session_count == 1
        assert (await stored(accounts, version))[ROOM]["s"]["session_data"] == {"ciphertext": kept}
    assert etags == [1, 1, 1, 2, 3, 4, 4], "the etag moves with each change and only then"


async def test_keys_by_room_and_session(accounts: Database) -> None:
    version = await room_keys.create_backup(accounts, ALICE, NEW_BACKUP)
    body = {"rooms": {ROOM: {"sessions": {"a": key(), "b/c": key()}}, OTHER_ROOM: {"sessions": {"a": key()}}}}
    counters = await room_keys.put_sessions(accounts, ALICE, version, room_keys.check_rooms(body))
    assert counters == BackupCounters(etag=1, session_count=3)
    assert await stored(accounts, version) == {room: one["sessions"] for room, one in body["rooms"].items()}
    assert (await stored(accounts, version, ROOM)).keys() == {ROOM}
    assert await stored(accounts, version, ROOM, "b/c") == {ROOM: {"b/c": key()}}
    assert await stored(accounts, version, ROOM, "no") == {}
    assert await room_keys.delete_sessions(accounts, ALICE, version, (ROOM, "a")) == BackupCounters(2, 2)
    assert await room_keys.delete_sessions(accounts, ALICE, version, (ROOM, "a")) == BackupCounters(2, 2)
    assert await room_keys.delete_sessions(accounts, ALICE, version, (OTHER_ROOM, None)) == BackupCounters(3, 1)
    assert await room_keys.delete_sessions(accounts, ALICE, version, (None, None)) == BackupCounters(4, 0)


async def test_only_the_current_version_takes_keys(accounts: Database) -> None:
    for _ in range(2):
        await room_keys.create_backup(accounts, ALICE, NEW_BACKUP)
    with pytest.raises(MatrixError) as refusal:
        await put(accounts, "1")
    assert refusal.value.status == 403
    assert refusal.value.body["errcode"] == "M_WRONG_ROOM_KEYS_VERSION"
    assert refusal.value.body["current_version"] == "2"
    assert (await put(accounts, "2")).session_count == 1


@pytest.mark.parametrize(
    "change",
    [
        {"first_message_index": -1},
        {"first_message_index": True},
        {"forwarded_count": "1"},
        {"is_verified": 1},
        {"session_data": None},
    ],
)
def test_malformed_keys_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidParam):
        room_keys.check_session(ROOM, "s", {**key(), **change})
