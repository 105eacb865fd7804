"""What a whole cluster costs: CPU of each kind of process for a send and a delivery, memory, idleness, a new writer.

    .venv/bin/python -m bench.cluster_figures idle
    .venv/bin/python -m bench.cluster_figures send --writers 3
    .venv/bin/python -m bench.cluster_figures fanout
    .venv/bin/python -m bench.cluster_figures start --rooms-made 10000
    .venv/bin/python -m bench.cluster_figures hold    # for a load from elsewhere

A `tessera cluster` on a Kafka, a Valkey and a PostgreSQL of its own, as real processes. CPU is read from /proc, so it
includes what ran for nobody's request meanwhile; `send` has no listener, so that what it says of the sync processes is
the price of events in rooms that none of their users is in.
"""

import argparse
import asyncio
import json
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp

from bench.process_costs import cpu_seconds, family, pss_mib, rss_mib
from tessera.embedded_postgres import EmbeddedPostgres
from tests.chaos.kill_under_load import Account, messages_of, register
from tests.fixtures.kafka_broker import ApacheKafka, new_broker
from tests.fixtures.kafka_topics import topic_prefix
from tests.fixtures.service_process import ClusterProcess
from tests.fixtures.valkey import ValkeyProcess

SERVICES = ("gateway", "rooms", "sync", "projector")
FILTER = quote('{"presence":{"types":[]},"room":{"timeline":{"limit":100},"ephemeral":{"types":[]}}}')
TEXT = "The quick brown fox jumps over the lazy dog, and does so again and again until it tires. "


@dataclass
class Machine:
    """A running cluster and the processes under it, by kind."""

    cluster: ClusterProcess
    backends: Mapping[str, int]
    description: str

    def kinds(self) -> dict[str, list[int]]:
        """Process IDs by service, those of the proxy and those of the backends."""
        kinds = {kind: [one["pid"] for one in self.cluster.processes(kind)] for kind in SERVICES}
        services = {pid for pids in kinds.values() for pid in pids}
        kinds["proxy"] = [pid for pid in family(self.cluster.pid) if pid not in services]
        return kinds | {name: family(pid) for name, pid in self.backends.items()}

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU so far, by kind."""
        return {kind: sum(map(cpu_seconds, pids)) for kind, pids in self.kinds().items()}


@asynccontextmanager
async def running(counts: Mapping[str, int], proxy: str, partitions: int) -> AsyncIterator[Machine]:
    """A cluster with backends of its own in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="cf-") as name:
        folder = Path(name)
        postgres = EmbeddedPostgres(folder / "postgres", settings={"max_connections": "300"})
        valkey, broker = ValkeyProcess(), new_broker(folder / "kafka")
        try:
            await postgres.start()
            valkey.start()
            await asyncio.to_thread(broker.start)
            own = {"accounts_dsn": postgres.dsn(), "partitions": partitions}
            cluster = ClusterProcess(
                folder, broker.settings(topic_prefix()), valkey.url, counts, proxy=proxy, tessera=own
            )
            await cluster.start()
            try:
                (postmaster,) = (folder / "postgres").rglob("postmaster.pid")
                main = int(postmaster.read_text().split()[0])
                backends = {"postgres": main, "valkey": valkey.pid}
                if isinstance(broker, ApacheKafka):
                    backends["kafka"] = broker.pid
                yield Machine(cluster, backends, broker.description)
            finally:
                await cluster.stop()
        finally:
            broker.kill()
            valkey.remove()
            await postgres.stop()


@dataclass
class Window:
    """CPU and time between two moments."""

    machine: Machine
    cpu: dict[str, float] = field(default_factory=dict)
    client: float = 0.0
    wall: float = 0.0

    async def over(self, work: Awaitable[object]) -> "Window":
        """Measure while this runs."""
        before, client, wall = self.machine.cpu(), time.process_time(), time.perf_counter()
        await work
        self.wall, self.client = time.perf_counter() - wall, time.process_time() - client
        self.cpu = {kind: seconds - before[kind] for kind, seconds in self.machine.cpu().items()}
        return self

    def lines(self, count: int, what: str) -> list[str]:
        """CPU for one of `count`, in milliseconds."""
        each = {kind: seconds / count * 1e3 for kind, seconds in self.cpu.items()}
        services = sum(each[kind] for kind in SERVICES)
        rows = ", ".join(f"{kind} {milliseconds:.3f}" for kind, milliseconds in each.items())
        client, machine = self.client / self.wall, sum(self.cpu.values()) / self.wall
        one_sync = each["sync"] / len(self.machine.cluster.processes("sync")) * 1e3
        return [
            f"{count / self.wall:.0f} {what}s/s; ms of CPU for one: all services {services:.2f} ({rows})",
            f"cores: the cluster {machine:.2f}, the client {client:.2f}; a sync process {one_sync:.1f} µs for one",
        ]


def spread(seconds: Sequence[float]) -> str:
    """Median and 99th percentile, in milliseconds."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {statistics.median(ordered) * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, longest {ordered[-1] * 1e3:.0f} ms"


async def at_most(concurrency: int, items: Sequence[int], work: Callable[[int], Awaitable[None]]) -> list[float]:
    """Do the work on each item, so many at a time; the seconds that each took."""
    seconds: list[float] = []
    waiting = iter(items)

    async def one_after_another() -> None:
        for item in waiting:
            started = time.perf_counter()
            await work(item)
            seconds.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(one_after_another())
    return seconds


async def make_rooms(
    machine: Machine, http: aiohttp.ClientSession, users: int, rooms: int, members: int
) -> list[tuple[str, list[Account]]]:
    """Rooms and their members, who are spread evenly over the users."""
    accounts: list[Account] = []
    made: list[tuple[str, list[Account]]] = []

    async def add_user(number: int) -> None:
        accounts.append(await register(machine.cluster, http, f"user{number}"))

    async def add_room(number: int) -> None:
        chosen = [accounts[(number * members + offset) % users] for offset in range(members)]
        room_id: str = (await chosen[0].call("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        for one in chosen[1:]:
            await one.call("POST", f"/join/{quote(room_id)}", {})
        made.append((room_id, chosen))

    await at_most(4, range(users), add_user)
    await at_most(8, range(rooms), add_room)
    return made


async def send_to(room_id: str, sender: Account, number: int | str) -> str:
    """One message; its event ID."""
    path = f"/rooms/{quote(room_id)}/send/m.room.message/t{number}"
    answer = await sender.call("PUT", path, {"msgtype": "m.text", "body": f"{number} {TEXT}"})
    event_id: str = answer["event_id"]
    return event_id


async def show_idle(machine: Machine, _http: aiohttp.ClientSession, arguments: argparse.Namespace) -> None:
    """CPU and memory of a cluster that nobody uses."""
    await asyncio.sleep(arguments.settle)
    each = {one["name"]: one["pid"] for one in machine.cluster.processes()}
    before = {name: cpu_seconds(pid) for name, pid in each.items()}
    window = await Window(machine).over(asyncio.sleep(arguments.seconds))
    services = sum(window.cpu[kind] for kind in SERVICES) / window.wall
    print(f"{len(each)} processes idle for {window.wall:.0f} s: {services:.2%} of a core")
    for name, pid in each.items():
        used = (cpu_seconds(pid) - before[name]) / window.wall
        print(f"  {name}: {used:.2%}, RSS {rss_mib(pid):.0f} MiB, PSS {pss_mib(pid):.0f} MiB")
    for kind in ("proxy", *machine.backends):
        print(f"  {kind}: {window.cpu[kind] / window.wall:.2%}")


async def show_send(machine: Machine, http: aiohttp.ClientSession, arguments: argparse.Namespace) -> None:
    """A closed loop of senders; nobody listens."""
    rooms = await make_rooms(machine, http, users=50, rooms=arguments.rooms, members=10)

    async def send(number: int) -> None:
        room_id, members = rooms[number % len(rooms)]
        await send_to(room_id, members[number // len(rooms) % len(members)], number)

    await at_most(arguments.senders, range(300), send)
    for round_number in range(arguments.rounds):
        first = 1_000_000 * (round_number + 1)
        seconds: list[float] = []

        async def load(first: int = first, seconds: list[float] = seconds) -> None:
            seconds += await at_most(arguments.senders, range(first, first + arguments.messages), send)

        window = await Window(machine).over(load())
        print("\n".join(window.lines(arguments.messages, "send")), f"{spread(seconds)}", sep="\n", flush=True)


async def show_fanout(machine: Machine, http: aiohttp.ClientSession, arguments: argparse.Namespace) -> None:
    """Messages by the clock to ten listeners each; a delay counts from the moment when its message is due."""
    rooms = await make_rooms(machine, http, users=20, rooms=5, members=10)
    due: dict[str, float] = {}
    arrivals: list[tuple[str, float]] = []
    heard = asyncio.Event()

    async def listen(account: Account) -> None:
        since = ""
        while True:
            answer = await account.call("GET", f"/sync?timeout=30000&set_presence=offline&filter={FILTER}{since}")
            now = time.perf_counter()
            since = f"&since={quote(answer['next_batch'])}"
            for room in answer.get("rooms", {}).get("join", {}).values():
                arrivals.extend((event_id, now) for event_id in messages_of(room["timeline"]["events"]))
            heard.set()

    async def send(number: int, moment: float) -> None:
        room_id, members = rooms[number % len(rooms)]
        due[await send_to(room_id, members[number % len(members)], number)] = moment

    async def load(first: int, count: int) -> None:
        start, already = time.perf_counter() + 0.1, len(arrivals)
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                moment = start + number / arguments.rate
                await asyncio.sleep(max(0.0, moment - time.perf_counter()))
                group.create_task(send(first + number, moment))
        async with asyncio.timeout(30):
            while len(arrivals) < already + count * 10:
                heard.clear()
                await heard.wait()

    accounts = {member.user_id: member for _, members in rooms for member in members}
    polls = [asyncio.create_task(listen(account)) for account in accounts.values()]
    try:
        await load(0, 40)
        for round_number in range(arguments.rounds):
            window = await Window(machine).over(load(1_000_000 * (round_number + 1), arguments.messages))
            measured = arrivals[-arguments.messages * 10 :]
            delays = spread([moment - due[event_id] for event_id, moment in measured])
            print("\n".join(window.lines(arguments.messages, "message")), f"delivery: {delays}", sep="\n", flush=True)
    finally:
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)


async def show_start(machine: Machine, http: aiohttp.ClientSession, arguments: argparse.Namespace) -> None:
    """A lone writer with many rooms is killed; from the start of the next one to its first commit."""
    maker = await register(machine.cluster, http, "maker")
    rooms: list[str] = []

    async def add_room(_number: int) -> None:
        rooms.append((await maker.call("POST", "/createRoom", {"preset": "private_chat"}))["room_id"])

    await at_most(16, range(arguments.rooms_made), add_room)
    (writer,) = machine.cluster.processes("rooms")
    for attempt in range(arguments.rounds):
        print(
            f"writer with {len(rooms)} rooms: {await _restart(machine, maker, rooms, writer['name'], attempt)}",
            flush=True,
        )


async def _restart(machine: Machine, maker: Account, rooms: Sequence[str], name: str, attempt: int) -> str:
    (old,) = machine.cluster.processes("rooms")
    machine.cluster.signal(name, signal.SIGKILL)
    killed = time.perf_counter()
    waiting = asyncio.create_task(send_to(rooms[attempt], maker, f"start{attempt}"))
    await machine.cluster.until(name, state="starting", not_pid=old["pid"])
    started = time.perf_counter()
    await machine.cluster.until(name, state="ready", not_pid=old["pid"])
    ready = time.perf_counter()
    await waiting
    committed = time.perf_counter()
    (new,) = machine.cluster.processes("rooms")
    return (
        f"{started - killed:.2f} s from SIGKILL to the next process; from its start {ready - started:.2f} s until it is"
        f" ready, {committed - started:.2f} s until it has acknowledged a send; {cpu_seconds(new['pid']):.2f} s of CPU"
    )


async def show_hold(machine: Machine, _http: aiohttp.ClientSession, _arguments: argparse.Namespace) -> None:
    """For a load from elsewhere."""
    print(json.dumps({"url": machine.cluster.base_url, "processes": machine.kinds()}), flush=True)
    before = machine.cpu()
    while True:
        await asyncio.to_thread(input)
        after = machine.cpu()
        print(json.dumps({kind: round(after[kind] - before[kind], 2) for kind in after}), flush=True)
        before = after


async def main() -> None:
    """Start a cluster, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shows = {"idle": show_idle, "send": show_send, "fanout": show_fanout, "start": show_start, "hold": show_hold}
    parser.add_argument("what", choices=shows)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--writers", type=int, help="default: 3; 1 for start")
    parser.add_argument("--syncs", type=int, default=2)
    parser.add_argument("--partitions", type=int, help="default: 64; 32 for start")
    parser.add_argument("--proxy", default="own", choices=("own", "nginx"))
    parser.add_argument("--seconds", type=float, default=30, help="idle")
    parser.add_argument("--settle", type=float, default=20, help="seconds before idle counts")
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--rooms", type=int, default=20, help="send")
    parser.add_argument("--messages", type=int, help="of a round; default: 2000, 160 for fanout")
    parser.add_argument("--rate", type=float, default=4.0, help="fanout: messages a second")
    parser.add_argument("--rooms-made", type=int, default=10_000, help="start")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    starting = arguments.what == "start"
    arguments.messages = arguments.messages or (160 if arguments.what == "fanout" else 2000)
    counts = {"gateways": arguments.gateways, "syncs": arguments.syncs, "projectors": 1, "media": 0}
    counts["writers"] = arguments.writers or (1 if starting else 3)
    partitions = arguments.partitions or (32 if starting else 64)
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=60)
    async with running(counts, arguments.proxy, partitions) as machine:
        print(f"on {machine.description}: {counts}, {partitions} partitions", flush=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            await shows[arguments.what](machine, http, arguments)


if __name__ == "__main__":
    asyncio.run(main())
