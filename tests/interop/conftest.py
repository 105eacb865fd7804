"""A running server for clients that know nothing of us: one process, and a cluster on real brokers."""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.fixtures.kafka_broker import Broker
from tests.fixtures.kafka_topics import topic_prefix
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.service_process import ClusterProcess
from tests.fixtures.valkey import ValkeyProcess

COUNTS = {"gateways": 2, "writers": 3, "syncs": 2, "media": 1, "projectors": 1}


class KillableCluster(ClusterProcess):
    """A cluster of which `kill` ends every service at once; whoever watches over them starts them again."""

    _killed: frozenset[int] = frozenset()

    async def kill(self) -> None:
        self._killed = frozenset(one["pid"] for one in self.processes() if one["pid"])
        for one in self.processes():
            self.signal(one["name"], signal.SIGKILL)

    async def start(self) -> None:
        if not self._killed:
            await super().start()
            return
        async with asyncio.timeout(90):
            while not all(_is_new(one, self._killed) for one in self.processes()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def _is_new(process: dict[str, Any], killed: frozenset[int]) -> bool:
    return process["state"] == "ready" and process["pid"] not in killed


@pytest.fixture(params=["one process", "cluster"])
def broker(request: pytest.FixtureRequest) -> Broker | None:
    """The Kafka of the cluster; none for one process, which needs no broker to be started."""
    if request.param == "one process":
        return None
    kafka: Broker = request.getfixturevalue("kafka")
    return kafka


@pytest.fixture
async def server(broker: Broker | None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """A server of this test alone: it may be killed."""
    folder = tmp_path_factory.mktemp("server")
    async with AsyncExitStack() as ends:
        if broker is None:
            process = ServerProcess(folder)
        else:
            valkey = ValkeyProcess()
            ends.callback(valkey.remove)
            valkey.start()
            kafka = broker.settings(topic_prefix())
            process = KillableCluster(folder, kafka, valkey.url, COUNTS, tessera={"partitions": 16})
        ends.push_async_callback(process.stop)
        await process.start()
        yield process


@pytest.fixture
def unique() -> str:
    """A suffix for user names."""
    return secrets.token_hex(4)
