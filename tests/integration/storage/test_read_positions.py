"""Receipts move forward only, and tell the user's log."""

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage import account_data, read_positions, user_log
from tessera.storage.database import Database
from tessera.storage.read_positions import ReadPosition
from tessera.storage.user_log import UserLogKind

ALICE, ROOM = UserId("@alice:x"), RoomId("!room:x")


def _receipt(anchor: int, sub: int = 0, *, kind: str = "m.read", thread_id: str = "") -> ReadPosition:
    return ReadPosition(ALICE, ROOM, kind, thread_id, EventId(f"${anchor}.{sub}"), anchor, sub, 7)


async def _set(accounts: Database, *positions: ReadPosition) -> dict[UserId, int]:
    async with accounts.transaction() as tx:
        return await read_positions.set_positions(tx, positions)


async def test_a_receipt_never_goes_back(accounts: Database) -> None:
    assert await _set(accounts, _receipt(5), _receipt(6)) == {ALICE: 1}
    assert await _set(accounts, _receipt(6)) == {}
    assert await _set(accounts, _receipt(6, -1)) == {}
    assert await _set(accounts, _receipt(7, -3)) == {ALICE: 2}
    async with accounts.reading() as tx:
        assert await read_positions.list_of_room(tx, ALICE, ROOM) == [_receipt(7, -3)]


async def test_threads_and_types_stand_apart(accounts: Database) -> None:
    await _set(accounts, _receipt(5), _receipt(3, thread_id="$t"), _receipt(4, kind="m.read.private"))
    async with accounts.reading() as tx:
        kept = await read_positions.list_of_rooms(tx, ALICE, [ROOM])
        entries = await user_log.list_after(tx, ALICE, 0)
    assert {(position.receipt_type, position.thread_id, position.anchor) for position in kept} == {
        ("m.read", "", 5),
        ("m.read", "$t", 3),
        ("m.read.private", "", 4),
    }
    assert {entry.kind for entry in entries} == {UserLogKind.RECEIPT}
    bodies = [orjson.loads(entry.body or b"") for entry in entries]
    assert {"event_id": "$3.0", "ts": 7, "thread_id": "$t"} in bodies


async def test_the_fully_read_marker_is_account_data_of_the_room_too(accounts: Database) -> None:
    assert await _set(accounts, _receipt(5, kind="m.fully_read")) == {ALICE: 2}
    async with accounts.reading() as tx:
        assert await account_data.find_content(tx, ALICE, ROOM, "m.fully_read") == b'{"event_id":"$5.0"}'
        entries = await user_log.list_after(tx, ALICE, 0)
    assert [(entry.kind, entry.key) for entry in entries] == [
        (UserLogKind.RECEIPT, "m.fully_read"),
        (UserLogKind.ROOM_ACCOUNT_DATA, "m.fully_read"),
    ]
