"""Memberships of local users: two appliers, any order, any repetition."""

import asyncio
import itertools

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage import user_log, user_rooms
from tessera.storage.database import Database
from tessera.storage.user_log import UserLogKind
from tessera.storage.user_rooms import MembershipChange

ALICE, BOB = UserId("@alice:x"), UserId("@bob:x")
ROOM = RoomId("!room:x")


def _change(
    membership: str, position: int, *, user_id: UserId = ALICE, incarnation: int = 1, state: bytes | None = None
) -> MembershipChange:
    event_id = EventId(f"${incarnation}-{position}")
    return MembershipChange(user_id, ROOM, membership, event_id, BOB, 3, incarnation, position, state)


async def _apply(accounts: Database, *changes: MembershipChange) -> dict[UserId, int]:
    async with accounts.transaction() as tx:
        return await user_rooms.apply_changes(tx, changes)


async def _log(accounts: Database, user_id: UserId = ALICE) -> list[tuple[str, str | None]]:
    async with accounts.reading() as tx:
        rows = await user_log.list_after(tx, user_id, 0)
    assert all(row.kind == UserLogKind.MEMBERSHIP for row in rows)
    bodies = [orjson.loads(row.body or b"") for row in rows]
    return [(body["membership"], body["prev_membership"]) for body in bodies]


async def test_a_change_sets_the_row_and_tells_the_log(accounts: Database) -> None:
    state = b'[{"type":"m.room.create"}]'
    assert await _apply(accounts, _change("invite", 5, state=state)) == {ALICE: 1}
    async with accounts.reading() as tx:
        row = await user_rooms.find_room(tx, ALICE, ROOM)
        [entry] = await user_log.list_after(tx, ALICE, 0)
    assert row is not None
    assert (row.membership, row.event_id, row.position, row.log_position) == ("invite", "$1-5", 5, 1)
    assert row.stripped_state == state
    assert entry.room_id == ROOM
    assert orjson.loads(entry.body or b"") == {
        "membership": "invite",
        "event_id": "$1-5",
        "sender": BOB,
        "partition": 3,
        "incarnation": 1,
        "position": 5,
        "state": [{"type": "m.room.create"}],
        "prev_membership": None,
        "prev_position": None,
    }


async def test_what_is_not_newer_is_ignored(accounts: Database) -> None:
    await _apply(accounts, _change("join", 5))
    assert await _apply(accounts, _change("join", 5)) == {}
    assert await _apply(accounts, _change("invite", 4)) == {}
    assert await _apply(accounts, _change("leave", 1, incarnation=2)) == {ALICE: 2}
    assert await _apply(accounts, _change("ban", 9)) == {}
    assert await _log(accounts) == [("join", None), ("leave", "join")]


async def test_several_changes_of_one_user_are_logged_one_by_one(accounts: Database) -> None:
    heads = await _apply(
        accounts, _change("leave", 7), _change("invite", 5), _change("join", 6), _change("join", 6, user_id=BOB)
    )
    assert heads == {ALICE: 3, BOB: 1}
    assert await _log(accounts) == [("invite", None), ("join", "invite"), ("leave", "join")]
    async with accounts.reading() as tx:
        assert await user_rooms.list_local_members(tx, ROOM) == [BOB]
        assert [room.membership for room in await user_rooms.list_rooms(tx, ALICE)] == ["leave"]


async def test_two_appliers_at_once_log_each_change_once(accounts: Database) -> None:
    changes = [_change("invite", 1), _change("join", 2), _change("leave", 3), _change("join", 4)]
    slices = [changes[:end] for end in range(1, 5)] * 3
    await asyncio.gather(*(_apply(accounts, *part) for part in slices))
    logged = [membership for membership, _ in await _log(accounts)]
    # A slice may come after a longer one, and is then ignored; what is logged is in order and ends right.
    assert logged[-1] == "join"
    assert len(logged) == len(set(itertools.accumulate(range(len(logged)))))
    assert len(logged) <= len(changes)
    async with accounts.reading() as tx:
        row = await user_rooms.find_room(tx, ALICE, ROOM)
        assert row is not None
        assert (row.membership, row.position) == ("join", 4)
        assert await user_log.find_head(tx, ALICE) == len(logged) == row.log_position


async def test_only_a_left_room_can_be_forgotten_and_entering_brings_it_back(accounts: Database) -> None:
    await _apply(accounts, _change("join", 1))
    async with accounts.transaction() as tx:
        assert await user_rooms.forget(tx, ALICE, ROOM) == {}
    await _apply(accounts, _change("leave", 2))
    async with accounts.transaction() as tx:
        assert await user_rooms.forget(tx, ALICE, ROOM) == {ALICE: 3}
        assert await user_rooms.forget(tx, ALICE, ROOM) == {}
    await _apply(accounts, _change("ban", 3))
    async with accounts.reading() as tx:
        row = await user_rooms.find_room(tx, ALICE, ROOM)
        assert row is not None
        assert row.forgotten
        assert await user_rooms.list_rooms(tx, ALICE, ["ban"]) == []
    await _apply(accounts, _change("invite", 4))
    async with accounts.reading() as tx:
        row = await user_rooms.find_room(tx, ALICE, ROOM)
    assert row is not None
    assert not row.forgotten


async def test_applying_is_two_statements_for_any_number(accounts: Database) -> None:
    changes = [_change("join", position, user_id=UserId(f"@user{position}:x")) for position in range(1, 51)]
    async with accounts.counting() as count:
        assert len(await _apply(accounts, *changes)) == 50
    assert count.statements == 2


async def test_sharing_a_room(accounts: Database) -> None:
    await _apply(accounts, _change("join", 1), _change("join", 2, user_id=BOB))
    async with accounts.reading() as tx:
        assert await user_rooms.shares_room(tx, ALICE, BOB)
        assert set(await user_rooms.list_users_sharing_room(tx, ALICE)) == {ALICE, BOB}
    await _apply(accounts, _change("leave", 3, user_id=BOB))
    async with accounts.reading() as tx:
        assert not await user_rooms.shares_room(tx, ALICE, BOB)
