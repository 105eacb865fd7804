"""Two versions of the cluster side by side: what a send costs in each, measured in turn in one run.

    git worktree add ../before <commit>
    .venv/bin/python -m bench.cluster_comparison --against ../before

Both clusters share one Kafka, one Valkey and one PostgreSQL (topics, keys and databases of their own) and the machine
with its neighbours, so that the ratio means something where the figures do not. The cluster whose turn it is not idles.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, chdir
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import asyncpg

from bench.cluster_figures import SERVICES, Machine, Window, at_most, make_rooms, send_to
from tessera.embedded_postgres import EmbeddedPostgres
from tests.fixtures.kafka_broker import ApacheKafka, new_broker
from tests.fixtures.service_process import ClusterProcess
from tests.fixtures.valkey import ValkeyProcess

HERE = Path(__file__).resolve().parent.parent
COLUMNS = ("services", *SERVICES, "proxy", "postgres", "valkey", "kafka", "sends/s", "p50 ms", "p99 ms")


@dataclass
class Version:
    """A running cluster of one checkout, and its rounds."""

    name: str
    machine: Machine
    send: Callable[[int], Awaitable[None]]
    rounds: list[Mapping[str, float]] = field(default_factory=list)

    def median(self, column: str) -> float:
        """Of all rounds."""
        return statistics.median(one[column] for one in self.rounds)


@asynccontextmanager
async def running(trees: list[Path], counts: Mapping[str, int], rooms: int) -> AsyncIterator[list[Version]]:
    """A cluster of each checkout, with rooms in it."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cc-")))
        postgres = EmbeddedPostgres(folder / "postgres", settings={"max_connections": "400"})
        valkey, broker = ValkeyProcess(), new_broker(folder / "kafka")
        await postgres.start()
        stack.push_async_callback(postgres.stop)
        valkey.start()
        stack.callback(valkey.remove)
        await asyncio.to_thread(broker.start)
        stack.callback(broker.kill)
        (pid_file,) = (folder / "postgres").rglob("postmaster.pid")
        backends = {"postgres": int(pid_file.read_text().split()[0]), "valkey": valkey.pid}
        if isinstance(broker, ApacheKafka):
            backends["kafka"] = broker.pid
        timeout = aiohttp.ClientTimeout(total=60)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        )
        versions: list[Version] = []
        for number, tree in enumerate(trees):
            dsn = await _new_database(postgres.dsn(), f"version{number}")
            redis = {"url": valkey.url, "key_prefix": f"version{number}:"}
            own = {"accounts_dsn": dsn, "partitions": 64, "redis": redis}
            kafka = broker.settings(f"version{number}.")
            cluster = ClusterProcess(folder / f"version{number}", kafka, valkey.url, counts, proxy="own", tessera=own)
            os.environ["PYTHONPATH"] = f"{tree}:{tree / 'libs'}"
            with chdir(tree):
                await cluster.start()
            stack.push_async_callback(cluster.stop)
            machine = Machine(cluster, backends, str(tree))
            versions.append(Version(str(tree), machine, await _sender(machine, http, rooms)))
        yield versions


async def _new_database(dsn: str, name: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    finally:
        await connection.close()
    head, _, tail = dsn.rpartition("/")
    _old, mark, query = tail.partition("?")
    return f"{head}/{name}{mark}{query}"


async def _sender(machine: Machine, http: aiohttp.ClientSession, count: int) -> Callable[[int], Awaitable[None]]:
    rooms = await make_rooms(machine, http, users=50, rooms=count, members=10)

    async def send(number: int) -> None:
        room_id, members = rooms[number % len(rooms)]
        await send_to(room_id, members[number // len(rooms) % len(members)], number)

    return send


async def measure(version: Version, first: int, messages: int, senders: int) -> None:
    """One round."""
    seconds: list[float] = []

    async def load() -> None:
        seconds.extend(await at_most(senders, range(first, first + messages), version.send))

    started = time.perf_counter()
    window = await Window(version.machine).over(load())
    ordered = sorted(seconds)
    each = {kind: used / messages * 1e3 for kind, used in window.cpu.items()}
    each["services"] = sum(each[kind] for kind in SERVICES)
    each["sends/s"] = messages / (time.perf_counter() - started)
    each["p50 ms"] = statistics.median(ordered) * 1e3
    each["p99 ms"] = ordered[int(len(ordered) * 0.99)] * 1e3
    version.rounds.append(each)
    print(version.name, ", ".join(f"{name} {each[name]:.2f}" for name in COLUMNS if name in each), flush=True)


async def main() -> None:
    """Start both, measure in turn, end them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--against", type=lambda text: Path(text).resolve(), required=True, help="a checkout of another commit"
    )
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--rooms", type=int, default=20)
    parser.add_argument("--messages", type=int, default=700, help="of a round")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    trees = [arguments.against, HERE]
    counts = {"gateways": 2, "syncs": 2, "projectors": 1, "media": 0, "writers": arguments.writers}
    async with running(trees, counts, arguments.rooms) as versions:
        for version in versions:
            await at_most(arguments.senders, range(300), version.send)
        first = 0
        for number in range(arguments.rounds):
            for version in versions if number % 2 == 0 else versions[::-1]:
                first += 1_000_000
                await measure(version, first, arguments.messages, arguments.senders)
        before, now = versions
        for name in COLUMNS:
            if name in before.rounds[0]:
                old, new = before.median(name), now.median(name)
                print(f"{name}: {old:.2f} before, {new:.2f} now" + (f", ratio {new / old:.2f}" if old else ""))


if __name__ == "__main__":
    asyncio.run(main())
