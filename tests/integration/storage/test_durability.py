"""A PostgreSQL that may forget what it acknowledged is refused."""

from pathlib import Path
from urllib.parse import quote

import pytest

from services.stores import open_stores
from tessera.config import Settings
from tessera.service import CannotStart
from tessera.storage.database import Database
from tessera.storage.durability import find_unsafe_settings


def settings(dsn: str, folder: Path, *, allow: bool) -> Settings:
    return Settings.for_tests(tessera={"accounts_dsn": dsn, "data_dir": folder, "allow_unsafe_postgres": allow})


async def test_a_forgetful_postgres_is_refused_in_one_line(dsn: str, tmp_path: Path) -> None:
    with pytest.raises(CannotStart) as refused:
        async with open_stores(settings(dsn, tmp_path, allow=False), progress=lambda _text: None):
            pass
    assert "fsync is off" in str(refused.value)
    assert "the account store" in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_it_is_taken_where_the_operator_wants_it(dsn: str, tmp_path: Path) -> None:
    async with open_stores(settings(dsn, tmp_path, allow=True), progress=lambda _text: None) as stores:
        assert await stores.accounts.fetchval("SELECT 1") == 1


async def test_each_setting_is_named(dsn: str) -> None:
    options = quote("-c synchronous_commit=on")
    database = await Database.connect(f"{dsn}{'&' if '?' in dsn else '?'}options={options}")
    try:
        reasons = await find_unsafe_settings(database)
    finally:
        await database.close()
    assert [reason.split()[0] for reason in reasons] == ["fsync", "full_page_writes"]
