"""A cluster on real Kafka, Valkey and PostgreSQL under load, with everything about it failing in turn.

    .venv/bin/python -m tests.chaos.cluster_chaos --faults 100

Thirty sends a second into forty rooms that forty listeners follow. Meanwhile services are killed (SIGKILL) or stopped
for twenty seconds (SIGSTOP, so that they wake up as zombies), Valkey forgets all it knows or is started anew, the
broker and PostgreSQL are started anew, connections to PostgreSQL and Valkey are cut. In the end: every acknowledged
event is in /messages exactly once and reached each member's /sync exactly once, all in one order; no send failed for
good; no fenced writer committed anything.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg

from tessera.embedded_postgres import EmbeddedPostgres
from tests.chaos.kill_under_load import Account, Ledger, Listener, catch_up, check, register
from tests.fixtures.cutting_proxy import CuttingProxy
from tests.fixtures.epoch_trace import FENCED_COMMITS, HOLES, TRACING
from tests.fixtures.kafka_broker import Broker, new_broker
from tests.fixtures.kafka_topics import topic_prefix
from tests.fixtures.service_process import ClusterProcess
from tests.fixtures.valkey import ValkeyProcess

COUNTS = {"gateways": 2, "writers": 3, "syncs": 2, "media": 0, "projectors": 2}
KILLED = ("gateway", "rooms", "sync", "projector")
STOPPED_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked of the cluster."""

    sends_a_second: float = 30
    rooms: int = 40
    listeners: int = 40
    members: int = 8  # listeners in a room
    pause_seconds: tuple[float, float] = (2.0, 8.0)  # between two faults


@dataclass
class Report:
    """What happened."""

    faults: Counter[str] = field(default_factory=Counter)
    ledger: Ledger = field(default_factory=Ledger)
    pauses: dict[str, list[float]] = field(default_factory=dict)  # seconds of the sends by the last fault before them

    def lines(self) -> list[str]:
        """For people."""
        sends = sum(map(len, self.ledger.acknowledged.values()))
        everything = sorted(pause for pauses in self.pauses.values() for pause in pauses)
        said = [f"{self.faults.total()} faults, {sends} sends acknowledged: none lost, none doubled, one order"]
        said += [f"  all sends: {_spread(everything)}"]
        for fault, pauses in sorted(self.pauses.items()):
            said.append(f"  after {fault} ({self.faults[fault]}): {_spread(sorted(pauses))}")
        return said


def _spread(pauses: Sequence[float]) -> str:
    p99 = pauses[min(len(pauses) - 1, int(len(pauses) * 0.99))]
    return f"p50 {statistics.median(pauses) * 1e3:.0f} ms, p99 {p99:.2f} s, longest {pauses[-1]:.1f} s"


class Machine:
    """Everything that runs, and ways to harm it."""

    def __init__(
        self, cluster: ClusterProcess, broker: Broker, valkey: ValkeyProcess, postgres: EmbeddedPostgres
    ) -> None:
        self.cluster = cluster
        self.broker = broker
        self.valkey = valkey
        self.postgres = postgres
        self.to_postgres: CuttingProxy
        self.to_valkey: CuttingProxy
        self._stopped: list[asyncio.Task[None]] = []

    def faults(self) -> dict[str, Callable[[random.Random], Awaitable[None]]]:
        """What can be done to it, by name."""
        kill = {f"{service} killed": self._killing(service) for service in KILLED}
        stop = {f"{service} stopped": self._stopping(service) for service in KILLED}
        return {
            **kill,
            **stop,
            "valkey flushed": self._flush,
            "valkey restarted": self._restart_valkey,
            "kafka restarted": self._restart_kafka,
            "postgres restarted": self._restart_postgres,
            "connections to postgres cut": self._cut(lambda: self.to_postgres),
            "connections to valkey cut": self._cut(lambda: self.to_valkey),
        }

    def _killing(self, service: str) -> Callable[[random.Random], Awaitable[None]]:
        async def kill(chance: random.Random) -> None:
            self.cluster.signal(chance.choice(self._running(service))["name"], signal.SIGKILL)

        return kill

    def _stopping(self, service: str) -> Callable[[random.Random], Awaitable[None]]:
        async def stop(chance: random.Random) -> None:
            victim = chance.choice(self._running(service))["pid"]
            self._stopped.append(asyncio.create_task(_stop_for_a_while(victim)))

        return stop

    def _running(self, service: str) -> list[dict[str, Any]]:
        """Those of a service that do not wait to be started again."""
        return [one for one in self.cluster.processes(service) if one["pid"] is not None]

    async def _flush(self, _chance: random.Random) -> None:
        await asyncio.to_thread(self.valkey.command, "FLUSHALL")

    async def _restart_valkey(self, _chance: random.Random) -> None:
        await asyncio.to_thread(self.valkey.restart)

    async def _restart_kafka(self, _chance: random.Random) -> None:
        await asyncio.to_thread(self.broker.kill)
        await asyncio.to_thread(self.broker.start)

    async def _restart_postgres(self, _chance: random.Random) -> None:
        await self.postgres.stop()
        await self.postgres.start()

    def _cut(self, proxy: Callable[[], CuttingProxy]) -> Callable[[random.Random], Awaitable[None]]:
        async def cut(_chance: random.Random) -> None:
            proxy().cut()

        return cut

    async def settle(self) -> None:
        """Until whoever was stopped goes on."""
        await asyncio.gather(*self._stopped)


async def _stop_for_a_while(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_SECONDS)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return  # killed meanwhile


@asynccontextmanager
async def running_machine(folder: Path) -> AsyncIterator[Machine]:
    """A cluster whose stores and brokers are reached through proxies that can be cut."""
    postgres = EmbeddedPostgres(folder / "postgres", settings={"max_connections": "300"})
    await postgres.start()
    valkey, broker = ValkeyProcess(), new_broker(folder / "kafka")
    valkey.start()
    await asyncio.to_thread(broker.start)
    socket = folder / "postgres" / "socket" / ".s.PGSQL.5432"
    to_postgres = CuttingProxy(lambda: asyncio.open_unix_connection(str(socket)))
    to_valkey = CuttingProxy(lambda: asyncio.open_unix_connection(str(valkey.socket)))
    await to_postgres.start()
    await to_valkey.start()
    login = postgres.dsn().partition("://")[2].partition("@")[0]
    dsn = f"postgresql://{login}@127.0.0.1:{to_postgres.port}/tessera"
    kafka = broker.settings(topic_prefix())
    own = {"accounts_dsn": dsn, "partitions": 16}
    cluster = ClusterProcess(folder / "cluster", kafka, f"redis://127.0.0.1:{to_valkey.port}", COUNTS, tessera=own)
    machine = Machine(cluster, broker, valkey, postgres)
    machine.to_postgres, machine.to_valkey = to_postgres, to_valkey
    try:
        await cluster.start()
        yield machine
    finally:
        await machine.settle()
        await cluster.stop()
        await to_postgres.stop()
        await to_valkey.stop()
        broker.kill()
        valkey.remove()
        await postgres.stop()


async def run(
    machine: Machine,
    *,
    faults: int,
    seed: int,
    load: Load,
    report: Callable[[str], None] = print,
    only: Sequence[str] = (),
) -> Report:
    """Harm the machine so many times; raises AssertionError at whatever is lost, doubled or out of order.

    Args:
        only: the kinds of faults; all if there are none.
    """
    chance = random.Random(seed)
    result = Report()
    await _execute(machine, TRACING)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        sender = await register(machine.cluster, session, f"sender{seed}")
        listeners = [
            Listener(await register(machine.cluster, session, f"l{seed}x{number}")) for number in range(load.listeners)
        ]
        rooms = await make_rooms(sender, listeners, load, chance)
        result.ledger.acknowledged = {room_id: {} for room_id in rooms}
        polls = [asyncio.create_task(listener.follow()) for listener in listeners]
        sending = Sending(sender, list(rooms), result, load)
        work = asyncio.create_task(sending.run())
        try:
            await _harm(machine, faults, chance, load, sending, report, only)
            await machine.settle()
            sending.stopping = True
            await work
            for listener, own_rooms in zip(listeners, rooms_of(listeners, rooms), strict=True):
                part = Ledger({room_id: result.ledger.acknowledged[room_id] for room_id in own_rooms})
                await catch_up([listener], polls, part)
                await check(listener.account, [listener], part)
        finally:
            for task in (*polls, work):
                task.cancel()
            await asyncio.gather(*polls, work, return_exceptions=True)
    assert not await _fetch(machine, FENCED_COMMITS), "a fenced writer committed"
    assert not await _fetch(machine, HOLES), "positions are missing"
    return result


async def _harm(
    machine: Machine,
    count: int,
    chance: random.Random,
    load: Load,
    sending: "Sending",
    report: Callable[[str], None],
    only: Sequence[str],
) -> None:
    known = {name: harm for name, harm in machine.faults().items() if not only or name in only}
    order: list[str] = []
    while len(order) < count:  # each kind as often as the others
        order += chance.sample(sorted(known), len(known))
    for number, name in enumerate(order[:count], 1):
        await asyncio.sleep(chance.uniform(*load.pause_seconds))
        sending.fault = name
        sending.result.faults[name] += 1
        await known[name](chance)
        report(f"fault {number}/{count}: {name}; {sending.count} sends")
    await asyncio.sleep(5)


@dataclass
class Sending:
    """Sends at a fixed rate, each tried until it is acknowledged."""

    sender: Account
    rooms: Sequence[str]
    result: Report
    load: Load
    fault: str = "nothing"
    count: int = 0
    stopping: bool = False

    async def run(self) -> None:
        """Until it is told to stop; a send that cannot be had raises."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while not self.stopping:
                group.create_task(self._send(self.count))
                self.count += 1
                # By the clock, not by the last send: a busy machine must not slow the load down.
                due = began + self.count / self.load.sends_a_second
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _send(self, number: int) -> None:
        room_id = self.rooms[number % len(self.rooms)]
        fault, started = self.fault, time.perf_counter()
        path = f"/rooms/{quote(room_id)}/send/m.room.message/t{number}"
        answer = await self.sender.call("PUT", path, {"msgtype": "m.text", "body": str(number)})
        acknowledged = self.result.ledger.acknowledged[room_id]
        assert answer["event_id"] not in acknowledged, "one event ID for two sends"
        acknowledged[answer["event_id"]] = str(number)
        self.result.pauses.setdefault(fault, []).append(time.perf_counter() - started)


async def make_rooms(
    sender: Account, listeners: Sequence[Listener], load: Load, chance: random.Random
) -> dict[str, list[Listener]]:
    rooms: dict[str, list[Listener]] = {}
    for _ in range(load.rooms):
        room_id: str = (await sender.call("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        rooms[room_id] = chance.sample(list(listeners), load.members)
        joins = [one.account.call("POST", f"/join/{quote(room_id)}", {}) for one in rooms[room_id]]
        await asyncio.gather(*joins)
    return rooms


def rooms_of(listeners: Sequence[Listener], rooms: dict[str, list[Listener]]) -> list[list[str]]:
    return [[room_id for room_id, members in rooms.items() if listener in members] for listener in listeners]


async def _execute(machine: Machine, statement: str) -> None:
    connection = await asyncpg.connect(machine.postgres.dsn())
    await connection.execute(statement)
    await connection.close()


async def _fetch(machine: Machine, query: str) -> list[Any]:
    connection = await asyncpg.connect(machine.postgres.dsn())
    rows: list[Any] = await connection.fetch(query)
    await connection.close()
    return rows


async def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help='a kind of fault, as "rooms killed"; repeatable')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tc-") as folder:
        async with running_machine(Path(folder)) as machine:
            print(f"on {machine.broker.description}")
            result = await run(machine, faults=arguments.faults, seed=arguments.seed, load=Load(), only=arguments.only)
    print("\n".join(result.lines()))


if __name__ == "__main__":
    asyncio.run(main())
