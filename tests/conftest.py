"""What tests of every kind share: a real PostgreSQL, started once a test process, and a fresh database a test."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import asyncpg
import pytest
import structlog

from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.database import Database
from tessera.storage.migrations import Tree, migrate
from tessera.storage.shards import RoomShards
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.kafka_broker import Broker, shared_broker
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.synapse import SynapseServer

PARTITIONS = 64
# A crash of the machine may take a test's database with it.
FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
_numbers = itertools.count()

# structlog's own choice shows the variables of every frame, which takes it seconds for one exception.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The server, with a template that has both schemas."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), settings=FORGETFUL)

    async def start() -> None:
        await server.start()
        await run_sql(server, "CREATE DATABASE template_tessera")
        for tree in Tree:
            await migrate(server.dsn("template_tessera"), tree)

    asyncio.run(start())
    yield server
    asyncio.run(server.stop())


async def run_sql(server: EmbeddedPostgres, statement: str) -> None:
    """One statement outside every test's database."""
    connection = await asyncpg.connect(server.dsn("postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def new_database(postgres: EmbeddedPostgres) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Make another empty, migrated database; answers its DSN."""
    made: list[str] = []

    async def make() -> str:
        name = f"test_{next(_numbers)}"
        await run_sql(postgres, f"CREATE DATABASE {name} TEMPLATE template_tessera")
        made.append(name)
        return postgres.dsn(name)

    yield make
    for name in made:
        await run_sql(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def dsn(new_database: Callable[[], Awaitable[str]]) -> str:
    """A fresh database with both schemas."""
    return await new_database()


@pytest.fixture
async def accounts(dsn: str) -> AsyncIterator[Database]:
    """The account store of a fresh database."""
    database = await Database.connect(dsn)
    yield database
    await database.close()


@pytest.fixture
def shards(accounts: Database) -> RoomShards:
    """One room shard, in the same database as the account store."""
    return RoomShards({"main": accounts}, dict.fromkeys(range(PARTITIONS), "main"), PARTITIONS)


@pytest.fixture(params=[1, 2], ids=["one-shard", "two-shards"])
async def any_shards(
    request: pytest.FixtureRequest, new_database: Callable[[], Awaitable[str]]
) -> AsyncIterator[RoomShards]:
    """One room shard, and then two in databases of their own."""
    databases = {f"shard{number}": await Database.connect(await new_database()) for number in range(request.param)}
    names = list(databases)
    placement = {partition: names[partition % len(names)] for partition in range(PARTITIONS)}
    yield RoomShards(databases, placement, PARTITIONS)
    for database in databases.values():
        await database.close()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running broker, one for all test processes; each test takes topics with a prefix of its own."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with shared_broker(folder / "kafka") as broker:
        yield broker


@pytest.fixture(scope="session")
def peer_authority(tmp_path_factory: pytest.TempPathFactory) -> PeerAuthority:
    """Signs the certificates of all servers that federate in a test process."""
    return PeerAuthority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def synapse_server(peer_authority: PeerAuthority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SynapseServer]:
    """A Synapse that runs for all tests of a process; whoever stops it starts it again."""
    synapse = SynapseServer(tmp_path_factory.mktemp("synapse"), peer_authority)
    try:
        synapse.start()
        yield synapse
    finally:
        synapse.stop()


@pytest.fixture
async def tessera_server(
    peer_authority: PeerAuthority, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[FederatedServer]:
    """A whole server in a process of its own, ready to federate."""
    server = FederatedServer(tmp_path_factory.mktemp("tessera"), peer_authority)
    await server.start()
    yield server
    await server.stop()
