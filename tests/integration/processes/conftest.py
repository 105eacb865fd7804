"""What separate processes need: a database, topics, a Valkey."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tessera.config import KafkaSettings
from tessera.storage.database import Database
from tessera.storage.partitions import add_partitions
from tessera.storage.placement import settle_placement
from tests.fixtures.kafka_broker import Broker
from tests.fixtures.kafka_topics import make_topics, topic_prefix
from tests.fixtures.service_process import ServiceProcess, cluster_keys, write_config
from tests.fixtures.valkey import ValkeyProcess

PARTITIONS = 8
StartService = Callable[[str, str], ServiceProcess]


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    """A server that the test may do with as it likes."""
    server = ValkeyProcess()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def kafka_settings(kafka: Broker) -> KafkaSettings:
    """Of a fresh prefix, without topics."""
    return kafka.settings(topic_prefix())


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[Database]:
    """The account store and the only shard, with the partitions in their places."""
    database = await Database.connect(dsn)
    async with database.transaction() as tx:
        await settle_placement(tx, PARTITIONS, ["main"])
        await add_partitions(tx, range(PARTITIONS))
    yield database
    await database.close()


@pytest.fixture
async def config(
    store: Database, dsn: str, tmp_path: Path, valkey: ValkeyProcess, kafka_settings: KafkaSettings
) -> Path:
    """A configuration for processes on all this."""
    await make_topics(kafka_settings, PARTITIONS)
    return write_config(
        tmp_path / "cluster",
        accounts_dsn=dsn,
        partitions=PARTITIONS,
        allow_unsafe_postgres=True,  # the tests' databases may forget
        **cluster_keys(kafka_settings, valkey.url),
    )


@pytest.fixture
async def service(config: Path) -> AsyncIterator[Callable[[str, str], Awaitable[ServiceProcess]]]:
    """Start a service under a name, and wait until it is ready."""
    started: list[ServiceProcess] = []

    async def start(kind: str, name: str) -> ServiceProcess:
        process = ServiceProcess(config, kind, name)
        started.append(process)
        return await process.start()

    yield start
    for process in started:
        await process.stop()
