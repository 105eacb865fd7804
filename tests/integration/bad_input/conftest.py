"""The whole homeserver in process, and a client of it who may act as often as the fuzzing wants."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from target_server import SERVER, Target

from services.hosting import make_app
from services.serve import run_services
from services.stores import open_stores
from tessera.clock import SystemClock
from tessera.config import Listener, Settings
from tessera.config.listeners import Resource
from tessera.embedded_postgres import EmbeddedPostgres

_UNLIMITED = {"per_second": 100_000, "burst_count": 100_000}


@pytest.fixture
def settings_overrides() -> dict[str, Any]:
    """Settings of the server that a test file wants otherwise."""
    return {}


@pytest.fixture
async def target(
    dsn: str, postgres: EmbeddedPostgres, tmp_path: Path, settings_overrides: dict[str, Any]
) -> AsyncIterator[Target]:
    """A server with all services, a user with a room and a message in it, and somebody who is nobody."""
    settings = Settings.for_tests(
        server_name=SERVER,
        media_store_path=tmp_path / "media",
        tessera={"accounts_dsn": dsn, "data_dir": tmp_path},
        **_without_limits(),
        **settings_overrides,
    )
    ready: asyncio.Future[Target] = asyncio.get_running_loop().create_future()
    ended = asyncio.Event()
    # A task of its own: what has a task group must be entered and left in the same task.
    running = asyncio.create_task(_run(settings, ready, ended))
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    yield ready.result()
    ended.set()
    await running


async def _run(settings: Settings, ready: asyncio.Future[Target], ended: asyncio.Event) -> None:
    listener = Listener(port=0, resources=(Resource(names=("client", "media", "metrics", "health")),))
    async with (
        open_stores(settings, progress=lambda _text: None) as stores,
        run_services(settings, stores, SystemClock()) as services,
    ):
        app = make_app(services, listener)
        transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4711))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{SERVER}", timeout=60) as client:
            ready.set_result(await Target.make(client, app))
            await ended.wait()


def _without_limits() -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path in Settings.for_tests().rate_limits():
        if path.startswith("tessera."):
            continue
        place = made
        *above, last = path.split(".")
        for key in above:
            place = place.setdefault(key, {})
        place[last] = _UNLIMITED
    return made
