"""Puts the sync service together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.sync.service import SyncService
from tessera.service import Service, Surroundings


@asynccontextmanager
async def open_sync(around: Surroundings) -> AsyncIterator[Service]:
    """GET /sync, GET /keys/changes and sliding sync; a drain answers everybody who waits."""
    sync = SyncService(
        around.accounts,
        around.shards,
        around.fanout,
        around.clock,
        instance=int.from_bytes(around.ids.random_bytes(4), "big"),
        ids=around.ids,
        presence_enabled=around.settings.presence.enabled,
        forget_device=around.authenticator.forget_device,
    )
    await sync.start()
    try:
        yield Service(routes={"client": sync.routes}, state={"sync": sync}, background=(sync.run,), drain=sync.stop)
    finally:
        await sync.stop()
