"""Buses to test: the one of one process, and the one on a real broker."""

from collections.abc import AsyncIterator, Iterator

import pytest
from bus_making import PARTITIONS, Buses, DoneOffsets, kafka_buses

from tessera.bus import LocalCommandBus, LocalRecordBus
from tessera.config import KafkaSettings
from tests.fixtures.kafka_broker import ApacheKafka, Broker, new_broker
from tests.fixtures.kafka_topics import make_topics, topic_prefix


@pytest.fixture(params=["local", "kafka"])
def bus_settings(request: pytest.FixtureRequest) -> KafkaSettings | None:
    """Of a fresh prefix; None for the buses of one process."""
    if request.param == "local":
        return None
    broker: Broker = request.getfixturevalue("kafka")
    return broker.settings(topic_prefix())


@pytest.fixture
async def buses(bus_settings: KafkaSettings | None) -> AsyncIterator[Buses]:
    """Empty topics."""
    done = DoneOffsets()
    if bus_settings is None:
        yield Buses(LocalCommandBus("one process"), LocalRecordBus(), done)
        return
    await make_topics(bus_settings, PARTITIONS)
    async with kafka_buses(bus_settings, done) as opened:
        yield Buses(opened.commands, opened.records, done)


@pytest.fixture(scope="module")
def module_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker beside the one that all share."""
    broker = new_broker(tmp_path_factory.mktemp("own") / "broker")
    if isinstance(broker, ApacheKafka):
        broker.start()
        yield broker
        broker.kill()
    else:
        yield broker


@pytest.fixture
def own_broker(module_broker: Broker) -> ApacheKafka:
    """A running broker that the test may end and freeze."""
    if not isinstance(module_broker, ApacheKafka):
        pytest.skip(f"needs a broker that can be ended and keeps its topics; there is {module_broker.description}")
    if module_broker.is_running:
        module_broker.thaw()
    else:
        module_broker.start()
    return module_broker


@pytest.fixture
def apache_kafka(kafka: Broker) -> Broker:
    """The shared broker, if it does all that Kafka does with offsets."""
    if not kafka.is_apache:
        pytest.skip(f"needs Apache Kafka; there is {kafka.description}")
    return kafka
