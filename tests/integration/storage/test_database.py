"""The pool: transactions, counts, and its bounds."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tessera.storage.database import Database, DatabaseUnavailable


@pytest.fixture
async def narrow(dsn: str) -> AsyncIterator[Database]:
    """A pool of one connection."""
    database = await Database.connect(dsn, min_size=1, max_size=1)
    await database.execute("CREATE TABLE public.t (x integer PRIMARY KEY)")
    yield database
    await database.close()


async def test_a_transaction_commits_whole_or_not_at_all(narrow: Database) -> None:
    async with narrow.transaction() as tx:
        await tx.execute("INSERT INTO public.t VALUES (1)")

    async def write_twice() -> None:
        async with narrow.transaction() as tx:
            await tx.execute("INSERT INTO public.t VALUES (2)")
            await tx.execute("INSERT INTO public.t VALUES (1)")

    with pytest.raises(asyncpg.UniqueViolationError):
        await write_twice()
    assert [row["x"] for row in await narrow.fetch("SELECT x FROM public.t")] == [1]


async def test_a_snapshot_sees_one_moment_and_writes_nothing(dsn: str, narrow: Database) -> None:
    other = await Database.connect(dsn)
    try:
        async with narrow.snapshot() as tx:
            assert await tx.fetchval("SELECT count(*) FROM public.t") == 0
            await other.execute("INSERT INTO public.t VALUES (1)")
            assert await tx.fetchval("SELECT count(*) FROM public.t") == 0
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with narrow.snapshot() as tx:
                await tx.execute("INSERT INTO public.t VALUES (2)")
    finally:
        await other.close()


async def test_statements_and_transactions_are_counted(narrow: Database) -> None:
    async with narrow.counting() as count:
        async with narrow.transaction() as tx:
            await tx.execute("INSERT INTO public.t VALUES (1)")
            await tx.fetch("SELECT x FROM public.t")
        await narrow.fetchval("SELECT 1")
    await narrow.fetchval("SELECT 1")
    assert (count.statements, count.transactions) == (3, 1)


async def test_a_statement_is_planned_once_for_all_values(narrow: Database) -> None:
    # PostgreSQL left alone plans this one for each value: a plan that knows the limit looks cheaper.
    query = "SELECT oid FROM pg_class WHERE oid > $1 ORDER BY oid LIMIT $2"
    async with narrow.reading() as tx:
        for limit in range(1, 20):
            await tx.fetch(query, 0, limit)
        plans = await tx.fetchrow(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1", query
        )
    assert tuple(plans) == (19, 0)


async def test_waiting_for_a_connection_is_bounded_in_time(narrow: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.storage.database.ACQUIRE_TIMEOUT_SECONDS", 0.05)
    async with narrow.reading():
        with pytest.raises(DatabaseUnavailable):
            await narrow.fetchval("SELECT 1")
    assert await narrow.fetchval("SELECT 1") == 1


async def test_waiting_for_a_connection_is_bounded_in_number(dsn: str) -> None:
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
    database = Database(pool, max_waiting=2)
    try:
        async with database.reading():
            waiting = [asyncio.create_task(database.fetchval("SELECT 1")) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(DatabaseUnavailable, match="too many"):
                await database.fetchval("SELECT 1")
        assert await asyncio.gather(*waiting) == [1, 1]
    finally:
        await database.close()


async def test_a_lost_connection_is_unavailable_and_the_next_is_new(dsn: str, narrow: Database) -> None:
    other = await Database.connect(dsn)
    try:
        pid = await narrow.fetchval("SELECT pg_backend_pid()")

        async def read_while_cut_off() -> None:
            async with narrow.reading() as tx:
                await other.execute("SELECT pg_terminate_backend($1, 5000)", pid)
                await tx.fetchval("SELECT 1")

        with pytest.raises(DatabaseUnavailable):
            await read_while_cut_off()
        assert await narrow.fetchval("SELECT pg_backend_pid()") != pid
    finally:
        await other.close()


async def test_wrong_arguments_are_a_mistake_and_not_an_outage(narrow: Database) -> None:
    with pytest.raises(asyncpg.DataError):
        await narrow.fetchval("SELECT $1::integer", "text")
