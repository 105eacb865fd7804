"""A cluster whose processes run from one of two source trees, behind a proxy that knows of them what /ready says."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from services.cluster.plan import ADDRESS, Counts, PlannedProcess, count_of, free_ports, plan_processes
from services.cluster.proxy import Backend, Proxy, make_server, open_session
from tessera.embedded_postgres import EmbeddedPostgres
from tests.fixtures.kafka_broker import Broker, new_broker
from tests.fixtures.kafka_topics import topic_prefix
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.service_process import cluster_keys
from tests.fixtures.valkey import ValkeyProcess

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 90
PROBE_SECONDS = 0.25
DRAIN_NOTICE_SECONDS = 1.0  # longer than the proxy needs to hear of it


class Slot:
    """A place in the cluster: its name and port stay, the process in it is replaced."""

    def __init__(self, planned: PlannedProcess) -> None:
        self.planned = planned
        self.is_ready = False
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, tree: Path) -> None:
        """Start a process of this tree, and wait until it is ready."""
        with self.planned.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.planned.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(tree),
                start_new_session=True,
            )
        async with asyncio.timeout(START_SECONDS):
            while not self.is_ready:
                if self._process.returncode is not None:
                    said = self.planned.log.read_text(errors="replace")[-3000:]
                    raise AssertionError(f"{self.planned.name} does not start:\n{said}")
                await asyncio.sleep(PROBE_SECONDS)

    async def stop(self) -> int:
        """SIGTERM, and wait for the orderly end; the exit status."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self._process.wait(), START_SECONDS)

    def suspect(self) -> None:
        """It did not take a connection."""
        self.is_ready = False

    async def probe_for_ever(self, http: aiohttp.ClientSession) -> None:
        """Ask /ready, as a load balancer does."""
        while True:
            try:
                async with http.get(f"{self.planned.url}/ready", timeout=aiohttp.ClientTimeout(total=4)) as answer:
                    self.is_ready = answer.status == 200
            except (aiohttp.ClientError, OSError, TimeoutError):
                self.is_ready = False
            await asyncio.sleep(PROBE_SECONDS)


class RollingCluster:
    """All of it. `server` says where, for clients."""

    def __init__(self, server: ServerProcess, slots: Sequence[Slot], broker: Broker) -> None:
        self.server = server
        self.slots = slots
        self.broker = broker

    async def run_command(self, tree: Path, *words: str) -> None:
        """A command of `tessera` from this tree; it succeeds."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", *words, "--config", str(self.server.config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment(tree),
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, f"{words}: {said.decode(errors='replace')[-3000:]}"

    async def start_all(self, tree: Path) -> None:
        """Migrate and start everything from one tree."""
        await self.run_command(tree, "migrate")
        await self.run_command(tree, "topics")
        for stage in sorted({slot.planned.stage for slot in self.slots}):
            await asyncio.gather(*(slot.start(tree) for slot in self.slots if slot.planned.stage == stage))


def environment(tree: Path) -> Mapping[str, str]:
    """Import from this tree and no other."""
    return {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'libs'}", "PYTHONSAFEPATH": "1"}


@asynccontextmanager
async def worktree(revision: str, folder: Path) -> AsyncIterator[Path]:
    """The source tree of a revision, while the block runs."""
    await _git("worktree", "add", "--detach", "--force", str(folder), revision)
    try:
        yield folder
    finally:
        await _git("worktree", "remove", "--force", str(folder))


async def _git(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("git", "-C", str(REPOSITORY), *words), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 0, f"git {' '.join(words)}: {said.decode()}"


@asynccontextmanager
async def rolling_cluster(folder: Path, counts: Counts) -> AsyncIterator[RollingCluster]:
    """Stores, brokers and the proxy of a cluster of which no process runs yet; all end with the block."""
    async with AsyncExitStack() as stack:
        postgres = EmbeddedPostgres(folder / "postgres", settings={"max_connections": "300"})
        await postgres.start()
        stack.push_async_callback(postgres.stop)
        valkey, broker = ValkeyProcess(), new_broker(folder / "kafka")
        valkey.start()
        stack.callback(valkey.remove)
        await asyncio.to_thread(broker.start)
        stack.callback(broker.kill)
        keys = cluster_keys(broker.settings(topic_prefix()), valkey.url)
        own = {"accounts_dsn": postgres.dsn(), "partitions": 16, "drain_notice_seconds": DRAIN_NOTICE_SECONDS}
        server = ServerProcess(folder / "cluster", tessera={"data_dir": str(folder / "cluster"), **keys, **own})
        planned = plan_processes(server.config, counts, free_ports(count_of(counts)), folder / "cluster")
        slots = [Slot(one) for one in planned]
        http = await stack.enter_async_context(open_session())
        for slot in slots:
            stack.push_async_callback(slot.stop)
        probes = [asyncio.create_task(slot.probe_for_ever(http)) for slot in slots]
        stack.callback(lambda: [probe.cancel() for probe in probes])
        await _serve(stack, slots, http, server.port)
        yield RollingCluster(server, slots, broker)


async def _serve(stack: AsyncExitStack, slots: Sequence[Slot], http: aiohttp.ClientSession, port: int) -> None:
    backends = [
        Backend(
            slot.planned.name,
            slot.planned.service,
            slot.planned.url,
            lambda slot=slot: slot.is_ready,  # type: ignore[misc]  # mypy infers no lambda with a default
            slot.suspect,
        )
        for slot in slots
    ]
    runner = web.ServerRunner(make_server(Proxy(backends, http, scheme="http")), shutdown_timeout=1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, ADDRESS, port).start()
