"""Once a day: what killed processes and old previews have left behind is put away, slowly.

- uploads that were never finished, and reserved IDs whose time is over;
- objects that no row names. They are set aside first and deleted a week later: whoever has connected the wrong
  database, or restored an old one, has so long to notice;
- thumbnails without a source;
- previews that have expired, and their images.

A row whose object is missing is told in the log and kept: the disk may come back, a deleted row does not.
"""

from dataclasses import dataclass

import structlog

from services.media.dependencies import MediaDeps
from services.media.disk_store import StoreClosed
from services.media.store_sweep import FoundFile, StoreWalk
from tessera.storage import media as media_rows
from tessera.storage import url_previews
from tessera.storage.database import DatabaseUnavailable

FIRST_SECONDS = 900.0  # after the start, when there is other work
INTERVAL_SECONDS = 86_400.0
PAUSE_SECONDS = 0.5  # after each batch
BATCH = 200
DAY_S = 86_400.0
YOUNG_S = DAY_S  # younger files may belong to an upload whose row comes
ASIDE_S = 7 * DAY_S
PREVIEW_MS = 2 * 86_400_000
PREVIEW_IMAGE_MS = 30 * 86_400_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class SweepReport:
    """How much was put away."""

    unfinished: int = 0
    reserved: int = 0
    orphans: int = 0
    deleted: int = 0
    thumbnails: int = 0
    previews: int = 0
    preview_images: int = 0
    missing: int = 0


async def run(media: MediaDeps) -> None:
    """Sweep once a day, until the store is closed: what a service does goes on while it is being ended."""
    await media.clock.sleep(FIRST_SECONDS)
    while True:
        try:
            log.info("media swept", **{name: count for name, count in _counts(await sweep(media)).items() if count})
        except (DatabaseUnavailable, OSError) as error:
            log.warning("media not swept to the end", error=type(error).__name__)
        except StoreClosed:
            return
        await media.clock.sleep(INTERVAL_SECONDS)


async def sweep(media: MediaDeps) -> SweepReport:
    """One walk through everything."""
    report = SweepReport()
    walk = media.store.walk()
    await _sweep_previews(media, report)
    await _sweep_reserved(media, report)
    now_s = media.clock.now_ms() / 1000
    report.unfinished = await media.store.run(walk.delete_unfinished, now_s - DAY_S)
    await _sweep_objects(media, walk, report)
    await _sweep_thumbnails(media, walk, report)
    report.deleted = await media.store.run(walk.delete_set_aside, now_s - ASIDE_S)
    await _look_for_missing(media, report)
    return report


async def _sweep_previews(media: MediaDeps, report: SweepReport) -> None:
    now_ms = media.clock.now_ms()
    while True:
        async with media.accounts.reading() as tx:
            gone = await url_previews.delete_expired(tx, now_ms - PREVIEW_MS, BATCH)
            keys = await url_previews.delete_images(tx, now_ms - PREVIEW_IMAGE_MS, BATCH)
        for key in keys:  # if we die here, they are orphans
            await media.store.delete(key)
        report.previews += gone
        report.preview_images += len(keys)
        if not gone and not keys:
            return
        await media.clock.sleep(PAUSE_SECONDS)


async def _sweep_reserved(media: MediaDeps, report: SweepReport) -> None:
    while True:
        async with media.accounts.reading() as tx:
            gone = await media_rows.delete_expired(tx, media.clock.now_ms(), BATCH)
        report.reserved += gone
        if not gone:
            return
        await media.clock.sleep(PAUSE_SECONDS)


async def _sweep_objects(media: MediaDeps, walk: StoreWalk, report: SweepReport) -> None:
    now_s = media.clock.now_ms() / 1000
    while found := await media.store.run(walk.next_objects, BATCH):
        old = [file for file in found if file.changed_s < now_s - YOUNG_S]
        orphans = await _without_row(media, old)
        if orphans:
            log.info("objects without a row set aside", keys=[file.key for file in orphans])
            await media.store.run(walk.set_aside, orphans, now_s)
        report.orphans += len(orphans)
        await media.clock.sleep(PAUSE_SECONDS)


async def _without_row(media: MediaDeps, files: list[FoundFile]) -> list[FoundFile]:
    if not files:
        return []
    async with media.accounts.reading() as tx:
        named = await media_rows.list_named(tx, [file.key for file in files])
    return [file for file in files if file.key not in named]


async def _sweep_thumbnails(media: MediaDeps, walk: StoreWalk, report: SweepReport) -> None:
    while found := await media.store.run(walk.next_thumbnails, BATCH):
        report.thumbnails += await media.store.run(walk.delete_thumbnails_without_source, found)
        await media.clock.sleep(PAUSE_SECONDS)


async def _look_for_missing(media: MediaDeps, report: SweepReport) -> None:
    after = ""
    while True:
        async with media.accounts.reading() as tx:
            keys = await media_rows.list_object_keys(tx, after, BATCH)
        if not keys:
            return
        missing = await media.store.run(_missing, media, keys)
        if missing:
            log.warning("stored media are missing", count=len(missing), keys=missing[:10])
        report.missing += len(missing)
        after = keys[-1]
        await media.clock.sleep(PAUSE_SECONDS)


def _missing(media: MediaDeps, keys: list[str]) -> list[str]:
    return [key for key in keys if not media.store.path_of(key).exists()]


def _counts(report: SweepReport) -> dict[str, int]:
    return {name: getattr(report, name) for name in SweepReport.__slots__}
