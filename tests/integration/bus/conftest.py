"""Buses to test: the one of one process, and the one on a real broker."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from bus_making import Buses, DoneOffsets, kafka_buses, make_topics, topic_prefix

from tessera.bus import LocalCommandBus, LocalRecordBus
from tessera.config import KafkaSettings
from tests.fixtures.kafka_broker import ApacheKafka, Broker, new_broker


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
    await make_topics(bus_settings)
    async with kafka_buses(bus_settings, done) as opened:
        yield Buses(opened.commands, opened.records, done)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that the test may end and freeze."""
    broker = new_broker(tmp_path / "broker")
    if not isinstance(broker, ApacheKafka):
        pytest.skip(f"needs a broker that can be ended and keeps its topics; there is {broker.description}")
    broker.start()
    yield broker
    broker.kill()
