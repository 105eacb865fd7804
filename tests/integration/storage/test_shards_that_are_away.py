"""A process starts while a room shard is away, and uses it only when it is back and in order."""

import asyncio

import pytest

from services import stores
from services.stores import reach_stores
from tessera.config import Settings
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.placement import settle_placement
from tests.conftest import run_sql

LATER = "a_shard_that_comes_later"


@pytest.fixture
async def settings(dsn: str, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(stores, "LOOK_SECONDS", 0.01)
    own = {
        "accounts_dsn": dsn,
        "shards": {"first": dsn, "second": postgres.dsn(LATER)},
        "allow_unsafe_postgres": True,
        "partitions": 4,
    }
    database = await Database.connect(dsn)
    async with database.transaction() as tx:
        await settle_placement(tx, 4, ["first", "second"])
    await database.close()
    return Settings.for_tests(tessera=own)


async def test_a_shard_is_used_when_it_is_back_and_has_its_schema(
    settings: Settings, postgres: EmbeddedPostgres
) -> None:
    async with reach_stores(settings, "a test") as reached:
        first, second = (reached.shards.databases[name] for name in ("first", "second"))
        assert await first.fetchval("SELECT 1") == 1
        with pytest.raises(DatabaseUnavailable):
            await second.ping()
        await run_sql(postgres, f"CREATE DATABASE {LATER}")
        try:
            for _ in range(20):  # it is there, without tables
                with pytest.raises(DatabaseUnavailable):
                    await second.ping()
                await asyncio.sleep(0.01)
            await run_sql(postgres, f"DROP DATABASE {LATER} WITH (FORCE)")
            await run_sql(postgres, f"CREATE DATABASE {LATER} TEMPLATE template_tessera")
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await second.fetchval("SELECT count(*) FROM rooms.rooms") == 0
                        break
                    except DatabaseUnavailable:
                        await asyncio.sleep(0.01)
        finally:
            await run_sql(postgres, f"DROP DATABASE IF EXISTS {LATER} WITH (FORCE)")


async def test_where_no_shard_is_there_nothing_starts(settings: Settings, postgres: EmbeddedPostgres) -> None:
    accounts = settings.accounts_dsn
    shards = {"first": postgres.dsn(LATER), "second": postgres.dsn(f"{LATER}_too")}
    own = {"accounts_dsn": accounts, "shards": shards, "allow_unsafe_postgres": True, "partitions": 4}
    with pytest.raises(DatabaseUnavailable):
        async with reach_stores(Settings.for_tests(tessera=own), "a test"):
            pass
