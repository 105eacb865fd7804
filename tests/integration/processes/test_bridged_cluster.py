"""A bridge of a cluster: the processes that tell it are killed, and it misses nothing."""

import random
import signal
from pathlib import Path

import pytest

from tessera.config import KafkaSettings
from tests.chaos.bridge_kills import MESSAGES, SENDERS, run, running_bridge
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.service_process import ClusterProcess
from tests.fixtures.valkey import ValkeyProcess

pytestmark = pytest.mark.timeout(240)
COUNTS = {"gateways": 1, "writers": 1, "syncs": 1, "media": 0, "projectors": 1, "pushes": 0, "appservices": 2}
RUNS = 2


async def kill_who_tells(server: ServerProcess) -> None:
    """One after the other, so that each takes over from the other."""
    assert isinstance(server, ClusterProcess)
    for one in server.processes("appservice"):
        server.signal(one["name"], signal.SIGKILL)
        await server.until(one["name"], state="ready", not_pid=one["pid"])


async def test_a_bridge_of_a_cluster_misses_nothing(
    tmp_path: Path, kafka_settings: KafkaSettings, valkey: ValkeyProcess, dsn: str
) -> None:
    own = {"accounts_dsn": dsn, "allow_unsafe_postgres": True, "partitions": 8}
    async with running_bridge(tmp_path, random.Random(5)) as (bridge, files):
        cluster = ClusterProcess(
            tmp_path / "cluster", kafka_settings, valkey.url, COUNTS, tessera=own, app_service_config_files=files
        )
        await cluster.start()
        try:
            told = await run(cluster, bridge, runs=RUNS, seed=5, crash=kill_who_tells)
        finally:
            status = await cluster.stop()
    assert told > RUNS * SENDERS * MESSAGES
    assert status == 0, cluster.log.read_text()[-4000:]
