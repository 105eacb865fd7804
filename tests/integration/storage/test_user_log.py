"""The user log: dense positions, and locks that cannot deadlock."""

import asyncio

from matrixcore.identifiers import UserId
from tessera.storage import user_log
from tessera.storage.database import Database
from tessera.storage.user_log import LogEntry, UserLogKind

ALICE, BOB = UserId("@alice:x"), UserId("@bob:x")


def _entry(user_id: UserId, room_id: str = "!r:x") -> LogEntry:
    return LogEntry(user_id, UserLogKind.UNREAD, room_id)


async def test_positions_are_dense_for_each_user_in_the_order_of_the_input(accounts: Database) -> None:
    async with accounts.transaction() as tx:
        assert await user_log.find_head(tx, ALICE) == 0
        assert await user_log.append_returning_positions(tx, [_entry(BOB), _entry(ALICE), _entry(BOB)]) == [1, 1, 2]
        assert await user_log.append(tx, [_entry(ALICE, "!a:x"), _entry(ALICE, "!b:x")]) == {ALICE: 3}
    async with accounts.reading() as tx:
        rows = await user_log.list_after(tx, ALICE, 1)
        assert [(row.position, row.room_id) for row in rows] == [(2, "!a:x"), (3, "!b:x")]
        assert await user_log.list_heads(tx, [ALICE, BOB, UserId("@c:x")]) == {ALICE: 3, BOB: 2, "@c:x": 0}
        assert [row.position for row in await user_log.list_after(tx, ALICE, 0, up_to=2)] == [1, 2]


async def test_nothing_appended_is_no_statement(accounts: Database) -> None:
    async with accounts.counting() as count, accounts.reading() as tx:
        assert await user_log.append(tx, []) == {}
    assert count.statements == 0


async def test_many_writers_over_the_same_users_leave_no_hole_and_no_deadlock(accounts: Database) -> None:
    users = [UserId(f"@user{number}:x") for number in range(5)]

    async def write(number: int) -> None:
        order = users if number % 2 else users[::-1]
        async with accounts.transaction() as tx:
            await user_log.append(tx, [_entry(user_id) for user_id in order])

    await asyncio.gather(*(write(number) for number in range(20)))
    async with accounts.reading() as tx:
        for user_id in users:
            rows = await user_log.list_after(tx, user_id, 0)
            assert [row.position for row in rows] == list(range(1, 21))


async def test_append_is_one_statement(accounts: Database) -> None:
    async with accounts.counting() as count, accounts.reading() as tx:
        await user_log.append(tx, [_entry(ALICE), _entry(BOB)])
    assert count.statements == 1
