"""A room shard that is put back to an older backup: everybody learns of it, nothing is skipped silently.

DESIGN section 2, invariant 15.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from services.hosting import make_app
from services.serve import run_services
from services.stores import Stores
from tessera.bus import LocalRecordBus
from tessera.clock import SystemClock
from tessera.config import Listener, Settings
from tessera.config.listeners import Resource
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.database import Database
from tessera.storage.partitions import add_partitions
from tessera.storage.shards import RoomShards
from tests.conftest import run_sql
from tests.fixtures.whole_server import CLIENT_ADDRESS, SERVER_NAME, Device, ServerApi, unlimited

PARTITIONS = 4


class Restorable:
    """A server whose room shard can be put back, while its log and its account store go on."""

    def __init__(self, settings: Settings, accounts: Database, shard_dsn: str) -> None:
        self._settings = settings
        self._accounts = accounts
        self.shard_dsn = shard_dsn
        self._log = LocalRecordBus()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServerApi]:
        """Run once."""
        shard = await Database.connect(self.shard_dsn)
        async with shard.transaction() as tx:
            await add_partitions(tx, range(PARTITIONS))
        shards = RoomShards({"main": shard}, dict.fromkeys(range(PARTITIONS), "main"), PARTITIONS)
        listener = Listener(port=0, resources=(Resource(names=("client",)),))
        stores = Stores(self._accounts, shards)
        async with run_services(self._settings, stores, SystemClock(), records=self._log) as hosted:
            transport = httpx.ASGITransport(app=make_app(hosted, listener), client=CLIENT_ADDRESS)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{SERVER_NAME}", timeout=60) as http:
                yield ServerApi(http)
        await shard.close()


def again(server: ServerApi, device: Device) -> Device:
    """The same device, at another run of the server."""
    login = {"user_id": device.user_id, "device_id": device.device_id, "access_token": device.token}
    return Device(server.http, login)


async def test_clients_resync_and_projections_follow_a_restored_shard(
    postgres: EmbeddedPostgres, new_database: Callable[[], Awaitable[str]], accounts: Database, tmp_path: Path
) -> None:
    settings = Settings.for_tests(
        server_name=SERVER_NAME,
        enable_registration=True,
        enable_registration_without_verification=True,
        media_store_path=tmp_path / "media",
        tessera={"data_dir": tmp_path, "partitions": PARTITIONS, "allow_unsafe_postgres": True},
        **unlimited(),
    )
    server = Restorable(settings, accounts, await new_database())
    name = server.shard_dsn.partition("?")[0].rpartition("/")[2]
    async with server.running() as running:
        alice, bob = await running.register("alice"), await running.register("bob")
        carol = await running.register("carol")
        room_id = await alice.make_room(preset="public_chat")
        await bob.post(f"/join/{room_id}")
        kept = await alice.send(room_id, "before the backup")
    await run_sql(postgres, f"CREATE DATABASE {name}_backup TEMPLATE {name}")
    async with server.running() as running:
        alice, bob, carol = (again(running, device) for device in (alice, bob, carol))
        await carol.post(f"/join/{room_id}")
        lost = await alice.send(room_id, "after it")
        await asyncio.gather(*(alice.send(room_id, f"more {number}") for number in range(5)))
        token = (await bob.sync())["next_batch"]
        assert room_id in (await carol.sync())["rooms"]["join"]
    await run_sql(postgres, f"DROP DATABASE {name} WITH (FORCE)")
    await run_sql(postgres, f"ALTER DATABASE {name}_backup RENAME TO {name}")
    async with server.running() as running:
        alice, bob, carol = (again(running, device) for device in (alice, bob, carol))
        new = await alice.send(room_id, "after the restore")
        answer = await bob.sync(token)
        timeline = answer["rooms"]["join"][room_id]["timeline"]
        assert timeline["limited"]
        told = [event["event_id"] for event in timeline["events"]]
        assert told[-1] == new
        assert lost not in told
        assert kept in await _history(bob, room_id)
        assert await _gone(carol, room_id), "her join is not in the restored room"
        incarnations = {row[0] for row in await _records(server)}
        assert incarnations == {1, 2}


async def _history(device: Device, room_id: str) -> list[str]:
    page = await device.get(f"/rooms/{room_id}/messages", dir="b", limit=100)
    return [event["event_id"] for event in page["chunk"]]


async def _gone(device: Device, room_id: str) -> bool:
    """Whether the room leaves the user's list, as soon as the projector has made it anew."""
    for _ in range(100):
        if room_id not in (await device.get("/joined_rooms"))["joined_rooms"]:
            return True
        await device.sync(timeout=100)
    return False


async def _records(server: Restorable) -> list[Any]:
    database = await Database.connect(server.shard_dsn)
    rows = await database.fetch("SELECT DISTINCT incarnation FROM rooms.records")
    await database.close()
    return rows
