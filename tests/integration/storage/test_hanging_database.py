"""A PostgreSQL that says nothing: its users learn that soon, and at once after the first. DESIGN.md section 11."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage import database as pool
from tessera.storage.database import Database, DatabaseUnavailable
from tests.conftest import FORGETFUL
from tests.fixtures.hanging_postgres import hanging

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    made = EmbeddedPostgres(tmp_path / "own", settings=FORGETFUL)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def watched(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A pool that is watched more closely than outside tests."""
    monkeypatch.setattr(pool, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(pool, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr(pool, "PROBE_SECONDS", 1.0)
    database = await Database.connect(server.dsn(), min_size=2, max_size=4)
    watching = asyncio.create_task(database.watch())
    yield database
    assert not watching.done()
    watching.cancel()
    await database.close()


async def in_transaction(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.execute("SELECT pg_sleep(60)")


async def test_nobody_waits_for_one_that_hangs(watched: Database, server: EmbeddedPostgres) -> None:
    busy = asyncio.create_task(in_transaction(watched))
    await watched.ping()
    with hanging(server):
        async with asyncio.timeout(10):
            waiting = (watched.ping(), watched.fetchval("SELECT 1"), busy)
            ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [DatabaseUnavailable] * 3
        with pytest.raises(DatabaseUnavailable, match="does not answer"):
            async with asyncio.timeout(0.05):
                await watched.ping()
    async with asyncio.timeout(20):
        while True:
            try:
                assert await watched.fetchval("SELECT 1") == 1
                break
            except DatabaseUnavailable:
                await asyncio.sleep(0.02)


async def test_a_slow_statement_of_one_that_answers_goes_on(watched: Database) -> None:
    async with watched.reading() as tx:
        assert await tx.fetchval("SELECT 1 FROM pg_sleep(1.5)") == 1
