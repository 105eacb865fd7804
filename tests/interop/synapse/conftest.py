"""Tessera, in one process or as a cluster, and a Synapse: one pair of servers for all tests of a process."""

import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fixtures.federated_server import FederatedCluster, FederatedServer
from tests.fixtures.kafka_broker import Broker
from tests.fixtures.kafka_topics import topic_prefix
from tests.fixtures.meeting import Meeting
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.synapse import SynapseServer
from tests.fixtures.valkey import ValkeyProcess

COUNTS = {"gateways": 2, "writers": 2, "syncs": 1, "media": 1, "federation-ins": 2, "federation-outs": 2, "pushes": 0}


@pytest.fixture(scope="session", params=["one-process", "cluster"])
def broker(request: pytest.FixtureRequest) -> Broker | None:
    """The Kafka of the cluster; none for one process."""
    if request.param == "one-process":
        return None
    kafka: Broker = request.getfixturevalue("kafka")
    return kafka


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tessera(
    broker: Broker | None, peer_authority: PeerAuthority, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[FederatedServer]:
    """A Tessera that all tests of a process share; whoever stops it starts it again."""
    folder = tmp_path_factory.mktemp("tessera")
    if broker is None:
        server = FederatedServer(folder, peer_authority)
        try:
            await server.start()
            yield server
        finally:
            await server.stop()
        return
    valkey = ValkeyProcess()
    valkey.start()
    cluster = FederatedCluster(
        folder,
        peer_authority,
        kafka=broker.settings(topic_prefix()),
        redis_url=valkey.url,
        counts=COUNTS,
        tessera={"partitions": 16},
    )
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
        valkey.remove()


@pytest.fixture(params=["10", "11", "12"])
def version(request: pytest.FixtureRequest) -> str:
    """The version of the rooms."""
    return str(request.param)


@pytest.fixture(params=["ours", "theirs"])
def ours_hosts(request: pytest.FixtureRequest) -> bool:
    """Whether the rooms are Tessera's, and Synapse's users come."""
    return bool(request.param == "ours")


@pytest_asyncio.fixture(loop_scope="session")
async def meeting(
    tessera: FederatedServer, synapse_server: SynapseServer, ours_hosts: bool, version: str
) -> AsyncIterator[Meeting]:
    """Two new people; the rooms are of each server once."""
    alices, bobs = (tessera, synapse_server) if ours_hosts else (synapse_server, tessera)
    async with alices.connected() as alices_api, bobs.connected() as bobs_api:
        alice = await alices_api.register(f"alice{secrets.token_hex(4)}")
        bob = await bobs_api.register(f"bob{secrets.token_hex(4)}")
        yield Meeting(alice, bob, alices, bobs, alices_api, bobs_api, version)
