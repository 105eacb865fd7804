"""What is left behind is put away, and nothing else."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from matrixcore.identifiers import ServerName, UserId
from services.media import sweeping
from services.media.dependencies import MediaDeps, MediaLimits
from services.media.disk_store import DiskStore
from services.media.sweeping import SweepReport, sweep
from services.media.thumbnailer import Thumbnailer
from tessera.clock import FakeClock
from tessera.http.limits import LocalRateLimits
from tessera.ids import IdSource
from tessera.storage import media as media_rows
from tessera.storage import url_previews
from tessera.storage.database import Database
from tessera.storage.media import UploadedContent

ORIGIN = ServerName("example.org")
ALICE = UserId("@alice:example.org")
DAY = 86_400


class QuickClock(FakeClock):
    """Nobody waits."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Store:
    """A media directory with files of any age, and rows."""

    def __init__(self, accounts: Database, root: Path) -> None:
        self.root = root
        self.accounts = accounts
        self.clock = QuickClock()
        store = DiskStore(root)
        self.deps = MediaDeps(
            ORIGIN,
            self.clock,
            IdSource.seeded(1),
            accounts,
            store,
            Thumbnailer(store, 1_000),
            MediaLimits(),
            asyncio.Semaphore(1),
            asyncio.Semaphore(1),
            LocalRateLimits(self.clock, {}),
        )

    async def add(self, key: str, *, days_old: float, row: bool = True, is_preview: bool = False) -> None:
        writer = self.deps.store.create(key, 100)
        await writer.write(b"content")
        await writer.finish()
        self.age(self.deps.store.path_of(key), days_old)
        await self.deps.store.add_thumbnail(key, "96x96-crop", b"thumbnail")
        if row:
            async with self.accounts.transaction() as tx:
                content = UploadedContent("text/plain", None, 7, key, True)
                await media_rows.add_uploaded(tx, ORIGIN, f"id{key}", ALICE, 1, content)
                if is_preview:
                    created = self.clock.now_ms() - round(days_old * DAY * 1000)
                    await url_previews.add_image(tx, ORIGIN, f"id{key}", created)

    def age(self, path: Path, days: float) -> None:
        then = self.clock.now_ms() / 1000 - days * DAY
        os.utime(path, (then, then))

    def files(self, folder: str) -> set[str]:
        return {path.name for path in (self.root / folder).rglob("*") if path.is_file()}


@pytest.fixture
async def store(accounts: Database, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(accounts, tmp_path)
    yield store
    store.deps.close()


async def test_what_is_in_use_stays(store: Store) -> None:
    await store.add("named-and-old", days_old=400)
    await store.add("no-row-yet", days_old=0.9, row=False)
    (store.root / "incoming" / "on-its-way").write_bytes(b"x")
    store.age(store.root / "incoming" / "on-its-way", 0.5)
    assert await sweep(store.deps) == SweepReport()
    assert store.files("content") == {"named-and-old", "no-row-yet"}
    assert store.files("incoming") == {"on-its-way"}
    assert store.files("thumbnails") == {"96x96-crop"}


async def test_objects_without_a_row_are_set_aside_and_deleted_a_week_later(store: Store) -> None:
    for number in range(5):
        await store.add(f"orphaned-{number}", days_old=2, row=False)
    await store.add("ok-named", days_old=2)
    report = await sweep(store.deps)
    assert (report.orphans, report.thumbnails, report.deleted) == (5, 5, 0)
    assert store.files("content") == {"ok-named"}
    assert store.files("orphaned") == {f"orphaned-{number}" for number in range(5)}
    store.clock.shift(6 * DAY)
    assert (await sweep(store.deps)).deleted == 0
    store.clock.shift(2 * DAY)
    assert (await sweep(store.deps)).deleted == 5
    assert store.files("orphaned") == set()
    assert store.files("content") == {"ok-named"}


async def test_uploads_and_reservations_that_came_to_nothing(store: Store, accounts: Database) -> None:
    (store.root / "incoming" / "abandoned").write_bytes(b"x")
    store.age(store.root / "incoming" / "abandoned", 1.1)
    now_ms = store.clock.now_ms()
    async with accounts.transaction() as tx:
        for media_id, expires in (("gone", now_ms - 1), ("waiting", now_ms + 1)):
            await media_rows.add_reserved(tx, ORIGIN, media_id, ALICE, 1, expires, authenticated=True)
    report = await sweep(store.deps)
    assert (report.unfinished, report.reserved) == (1, 1)
    assert store.files("incoming") == set()
    assert [row[0] for row in await accounts.fetch("SELECT media_id FROM accounts.media")] == ["waiting"]


async def test_previews_go_with_their_images(store: Store, accounts: Database) -> None:
    await store.add("preview-old", days_old=31, is_preview=True)
    await store.add("preview-new", days_old=29, is_preview=True)
    now_ms = store.clock.now_ms()
    async with accounts.transaction() as tx:
        for name, expires in ((b"old", now_ms - 3 * DAY * 1000), (b"new", now_ms - DAY * 1000)):
            await url_previews.set_preview(tx, name, b"{}", now_ms=1, expires_ts=expires)
    report = await sweep(store.deps)
    assert (report.previews, report.preview_images) == (1, 1)
    assert store.files("content") == {"preview-new"}
    assert [row[0] for row in await accounts.fetch("SELECT media_id FROM accounts.media")] == ["idpreview-new"]
    assert [row[0] for row in await accounts.fetch("SELECT url_hash FROM accounts.url_previews")] == [b"new"]


async def test_missing_objects_are_told_and_their_rows_kept(store: Store, accounts: Database) -> None:
    await store.add("lost-file", days_old=3)
    store.deps.store.path_of("lost-file").unlink()
    report = await sweep(store.deps)
    assert (report.missing, report.thumbnails) == (1, 1)
    assert await accounts.fetchval("SELECT count(*) FROM accounts.media") == 1


async def test_it_ends_quietly_when_the_store_is_closed_below_it(store: Store) -> None:
    # A service's tasks go on while the service is being ended; an error here would hide the one that ended it.
    store.deps.close()
    await asyncio.wait_for(sweeping.run(store.deps), 10)


async def test_it_runs_in_small_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "BATCH", 2)
    for number in range(7):
        await store.add(f"many-{number}-named", days_old=2, row=number % 2 == 0)
    async with store.accounts.counting() as count:
        assert (await sweep(store.deps)).orphans == 3
    assert count.statements <= 4 + 4 + 3
    assert store.files("content") == {f"many-{number}-named" for number in (0, 2, 4, 6)}
