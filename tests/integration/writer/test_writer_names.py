"""Two living writers do not have one name. DESIGN section 2, invariant 1; section 10."""

import pytest
from writer_world import World

from services.rooms import main
from services.rooms.main import require_own_name
from tessera.clock import SystemClock
from tessera.service import CannotStart
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

_LEFT_BEHIND = """
INSERT INTO rooms.writers (owner, name, lock_key, expires_at)
VALUES ('gone/1', 'gone', $1, clock_timestamp() + $2 * interval '1 second')
"""


async def test_the_name_of_a_living_writer_is_refused(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "NAME_SECONDS", 0.3)
    shards = any_world.shards
    async with any_world.writer("one"):
        with pytest.raises(CannotStart, match="another writer named one"):
            await require_own_name(shards, "one", SystemClock())
        await require_own_name(shards, "two", SystemClock())
    await require_own_name(shards, "one", SystemClock())


@pytest.mark.parametrize(("lock_key", "seconds"), [(4711, 60.0), (None, 0.2)], ids=["lock is free", "lease runs out"])
async def test_one_that_was_killed_does_not_keep_its_name(
    shards: RoomShards, accounts: Database, lock_key: int | None, seconds: float
) -> None:
    await accounts.execute(_LEFT_BEHIND, lock_key, seconds)
    await require_own_name(shards, "gone", SystemClock())


async def test_a_shard_that_is_away_knows_nobody(accounts: Database, dsn: str) -> None:
    away = await Database.connect(dsn)
    await away.close()
    await require_own_name(
        RoomShards({"here": accounts, "away": away}, {0: "here", 1: "away"}, 2), "one", SystemClock()
    )
