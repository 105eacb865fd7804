"""Bringing schemas up to date: once for several starters, never backwards, with one line when it cannot be done."""

import asyncio
import socket

import asyncpg
import pytest

from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.migrations import MigrationError, NewerSchema, Tree, migrate, pending_revisions, require_current
from tests.conftest import run_sql


async def test_a_current_schema_needs_nothing(dsn: str) -> None:
    for tree in Tree:
        assert await migrate(dsn, tree) == []
        await require_current(dsn, tree)


async def test_several_starters_migrate_an_empty_database_once(postgres: EmbeddedPostgres) -> None:
    await run_sql(postgres, "CREATE DATABASE test_empty")
    try:
        dsn = postgres.dsn("test_empty")
        with pytest.raises(MigrationError, match="run `tessera migrate`"):
            await require_current(dsn, Tree.ROOMS)
        foreseen = await pending_revisions(dsn, Tree.ROOMS)
        ran = await asyncio.gather(*(migrate(dsn, Tree.ROOMS) for _ in range(3)))
        assert foreseen
        assert sorted(ran) == [[], [], foreseen]
        # The other tree has a version of its own, and is not there yet.
        assert await pending_revisions(dsn, Tree.ACCOUNTS) == await migrate(dsn, Tree.ACCOUNTS)
    finally:
        await run_sql(postgres, "DROP DATABASE test_empty WITH (FORCE)")


async def test_a_newer_schema_is_refused(dsn: str, accounts: Database) -> None:
    await accounts.execute("INSERT INTO accounts.schema_revision (revision) VALUES ('9999')")
    with pytest.raises(NewerSchema, match="9999") as caught:
        await migrate(dsn, Tree.ACCOUNTS)
    assert "\n" not in str(caught.value)
    assert await migrate(dsn, Tree.ROOMS) == []


async def test_the_release_before_works_on_an_expanded_schema(dsn: str, accounts: Database) -> None:
    await accounts.execute("INSERT INTO accounts.schema_revision (revision, expands) VALUES ('9998', true)")
    assert await migrate(dsn, Tree.ACCOUNTS) == []
    await require_current(dsn, Tree.ACCOUNTS)
    await accounts.execute("INSERT INTO accounts.schema_revision (revision, expands) VALUES ('9999', false)")
    with pytest.raises(NewerSchema, match="9999"):
        await require_current(dsn, Tree.ACCOUNTS)


async def test_a_database_from_before_expansions_were_noted(dsn: str, accounts: Database) -> None:
    await accounts.execute("ALTER TABLE accounts.schema_revision DROP COLUMN expands")
    await require_current(dsn, Tree.ACCOUNTS)
    assert await migrate(dsn, Tree.ACCOUNTS) == []
    assert await accounts.fetchval("SELECT bool_and(expands) FROM accounts.schema_revision")


async def test_a_revision_that_fails_leaves_nothing_behind(dsn: str, accounts: Database) -> None:
    newest = await accounts.fetchval("SELECT max(revision) FROM accounts.schema_revision")
    await accounts.execute("DELETE FROM accounts.schema_revision WHERE revision = $1", newest)
    before = await accounts.fetchval("SELECT count(*) FROM pg_class")
    with pytest.raises(MigrationError, match=newest):
        await migrate(dsn, Tree.ACCOUNTS)  # what it would make is there already
    assert await accounts.fetchval("SELECT count(*) FROM pg_class") == before
    assert await pending_revisions(dsn, Tree.ACCOUNTS) == [newest]


async def test_a_starter_that_hangs_does_not_hold_the_others_for_ever(
    dsn: str, accounts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessera.storage.migrations.runner.STARTERS_TIMEOUT_MS", 50)
    async with accounts.transaction() as tx:
        await tx.execute("SELECT pg_advisory_xact_lock($1)", 0x7E55E8A)
        with pytest.raises(MigrationError, match="another"):
            await migrate(dsn, Tree.ACCOUNTS)
    assert await migrate(dsn, Tree.ACCOUNTS) == []


async def test_an_unreachable_or_unknown_database_is_one_line(dsn: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"postgresql://nobody:hunter2@127.0.0.1:{free.getsockname()[1]}/nothing"
        for url in (nowhere, dsn.replace("/test_", "/no_such_")):
            with pytest.raises(DatabaseUnavailable) as caught:
                await migrate(url, Tree.ACCOUNTS)
            assert "\n" not in str(caught.value)
            assert "hunter2" not in str(caught.value)


async def test_the_lock_ends_with_the_starter(dsn: str) -> None:
    await migrate(dsn, Tree.ROOMS)
    connection = await asyncpg.connect(dsn)
    try:
        assert await connection.fetchval("SELECT pg_try_advisory_lock($1)", 0x7E55E8A)
    finally:
        await connection.close()
