"""The gateway's room routes over HTTP, on a real room writer where a test asks for it."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import httpx
import pytest
from room_clients import TokenIsTheUser
from seeded_rooms import KEY, SERVER, SeededRoom

from services.gateway.bridged_networks import BridgedNetworks
from services.gateway.receipt_batches import ReceiptBatches
from services.gateway.room_changes import RoomChanges
from services.gateway.room_creation import RoomMaker
from services.gateway.room_routes import HOT_ROUTES, room_routers
from services.rooms.ownership import Owner
from services.rooms.room_work import Signer
from services.rooms.shard_writer import ShardWriter
from tessera.appservice_client import AppServiceClient
from tessera.appservices import AppServices
from tessera.bus import LocalCommandBus, LocalRecordBus
from tessera.clock import FakeClock, SystemClock
from tessera.config import Settings
from tessera.fanout import LocalFanout
from tessera.http.app import MatrixApp, create_app
from tessera.http.limits import LocalRateLimits
from tessera.ids import IdSource
from tessera.room_commands import RoomCommands
from tessera.storage.database import Database
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.partitions import add_partitions
from tessera.storage.shards import RoomShards


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gateway(accounts: Database, shards: RoomShards, clock: FakeClock) -> SimpleNamespace:
    """The dependencies that the room routes use; nobody writes rooms but for tests with `writer`."""
    ids, fanout, bus = IdSource.seeded(1), LocalFanout(), LocalCommandBus("topic")
    commands = RoomCommands(bus, fanout, ShardOutcomes(shards))
    changes = RoomChanges(commands, shards, accounts, fanout, clock, ids)
    return SimpleNamespace(
        settings=Settings.for_tests(server_name=SERVER),
        server_name=SERVER,
        clock=clock,
        ids=ids,
        accounts=accounts,
        shards=shards,
        fanout=fanout,
        bus=bus,
        records=LocalRecordBus(),
        commands=commands,
        limits=LocalRateLimits(clock, {}),
        receipts=ReceiptBatches(changes),
        rooms=changes,
        room_maker=RoomMaker(changes, SERVER, KEY),
        backfiller=None,
        networks=BridgedNetworks(AppServices(), AppServiceClient(clock, connections=1), clock),
        elsewhere=None,
        spaces=None,
    )


@pytest.fixture
def app(gateway: SimpleNamespace) -> MatrixApp:
    return create_app(
        routes=HOT_ROUTES,
        routers=room_routers(),
        state={"gateway": gateway, "authenticator": TokenIsTheUser()},
        ids=gateway.ids,
    )


@pytest.fixture
async def http(app: MatrixApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here.org") as client:
        yield client


@pytest.fixture
async def writer(gateway: SimpleNamespace) -> AsyncIterator[ShardWriter]:
    """The writer of all partitions."""
    async with gateway.accounts.transaction() as tx:
        await add_partitions(tx, range(gateway.shards.partitions))
    made = ShardWriter(
        "main",
        gateway.accounts,
        lambda: range(gateway.shards.partitions),
        Owner("test", "test-1", None),
        signer=Signer(SERVER, KEY, gateway.ids),
        commands=gateway.bus,
        records=gateway.records,
        fanout=gateway.fanout,
        clock=SystemClock(),
        hot_rooms_bytes=1 << 24,
    )
    await gateway.commands.start()
    running = asyncio.create_task(made.run())
    ready = asyncio.create_task(made.ready.wait())
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    assert ready.done(), "the writer has ended"
    yield made
    await made.stop()
    await running
    await gateway.commands.stop()


@pytest.fixture
async def room(accounts: Database) -> SeededRoom:
    """A room of Alice's."""
    return await SeededRoom(accounts).create()
