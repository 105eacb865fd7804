"""A cluster in one event loop: the real services, each in a simulated process, on a faulty bus and fan-out."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any
from urllib.parse import urlencode

import orjson
from database_clock import EPOCH_MS
from faulty_bus import Faults, FaultyCommandBus, FaultyRecordBus, Topic
from faulty_fanout import FanoutServer, FaultyFanout
from sim_peer import Peer
from sim_process import ProcessDied, SimProcess
from starlette.requests import Request
from virtual_loop import VirtualLoop

from matrixcore.identifiers import ServerName, UserId
from matrixcore.signing import SigningKey
from services.gateway import room_routes
from services.gateway.main import open_gateway
from services.projector.main import open_projector
from services.rooms.main import open_rooms
from services.sync.main import open_sync
from tessera.config import Settings
from tessera.federation.opening import open_federation
from tessera.http.app import create_app
from tessera.http.authentication import Requester, access_token_of
from tessera.http.limits import LocalRateLimits
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.service import CannotStart, ServiceOpener, Surroundings
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.shards import RoomShards
from tessera.token_authenticator import TokenAuthenticator

SERVER = "sim.example"
PARTITIONS = 4
KINDS = ("writer", "gateway", "sync", "projector", "receiver")
ASK_SECONDS = 90.0
MAX_CONNECTIONS = 4  # of a process; PostgreSQL parses its statements on each of them
OPENERS: Mapping[str, ServiceOpener] = {
    "writer": open_rooms,
    "gateway": open_gateway,
    "sync": open_sync,
    "projector": open_projector,
}
App = Callable[[Any, Any, Any], Awaitable[None]]


class LoopClock:
    """The virtual time, as a service sees it; the wall clock of each process is off by its own amount."""

    def __init__(self, loop: VirtualLoop, skew_ms: int) -> None:
        self._loop = loop
        self._skew_ms = skew_ms

    def now_ms(self) -> int:
        return EPOCH_MS + self._skew_ms + round(self._loop.time() * 1000)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class Tokens:
    """Tokens of the form "user|device", in place of password and login."""

    async def authenticate(self, request: Request) -> Requester:
        return await self.authenticate_token(access_token_of(request))

    async def authenticate_token(self, token: str) -> Requester:
        user_id, _, device = token.partition("|")
        return Requester(UserId(user_id), device)


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that is to hit a process of a kind before so many of its steps."""

    kind: str
    steps: int
    kills: bool


@dataclass(slots=True)
class Member:
    """A place in the cluster, filled by one process after the other."""

    kind: str
    name: str
    process: SimProcess
    app: Any = None  # what it answers requests with


class SimCluster:
    """The processes, the broker and the fan-out's server.

    Args:
        dsn: a database with both schemas.
        database: connections to it that belong to no process.
        strikes: in the order of their coming, each counted from the one before of its kind.
    """

    def __init__(self, loop: VirtualLoop, dsn: str, database: Database, random: Random, strikes: list[Strike]) -> None:
        self.loop = loop
        self.random = random
        self.faults = Faults(random)
        self.commands = Topic(loop, self.faults)
        self.records = Topic(loop, self.faults)
        self.fanout = FanoutServer(loop, self.faults)
        self.members: dict[str, Member] = {}
        self.buried: list[SimProcess] = []
        self.failures: list[str] = []
        self.struck: list[str] = []
        self._running: set[asyncio.Task[None]] = set()
        self._dsn = dsn
        self._database = database
        self._strikes = {kind: [strike for strike in strikes if strike.kind == kind] for kind in KINDS}
        self._steps = dict.fromkeys(KINDS, 0)
        self._ids = IdSource(random.randbytes)
        self._signing_key = SigningKey("sim", random.randbytes(32))
        self.peer = Peer(self.faults, Random(random.random()))
        receiver = partial(self.peer.receiver, ServerName(SERVER))
        self._openers: Mapping[str, ServiceOpener] = {**OPENERS, "receiver": receiver}

    async def start(self, counts: Mapping[str, int]) -> None:
        """Start so many of each kind, and wait until they work."""
        for kind, count in counts.items():
            for number in range(count):
                await self._begin(kind, f"{kind}{number}")

    async def _begin(self, kind: str, name: str) -> None:
        while True:
            process = SimProcess(name, self.loop, self._before_step)
            self.members[name] = Member(kind, name, process)
            ready: asyncio.Future[Any] = self.loop.create_future()
            process.spawn(self._main(kind, process, ready))
            while not ready.done() and not process.dead:  # noqa: ASYNC110 -- a dead process sets nothing
                await asyncio.sleep(0.05)
            if process.dead:
                return
            try:
                self.members[name].app = ready.result()
            except (DatabaseUnavailable, CannotStart):  # it ends with one line, and what keeps it alive starts it again
                await asyncio.sleep(1)
            else:
                return

    async def restart(self, name: str) -> None:
        """Another process in the place of a dead one."""
        member = self.members[name]
        self.buried.append(member.process)
        await self._begin(member.kind, name)

    def of_kind(self, kind: str) -> list[Member]:
        return [member for member in self.members.values() if member.kind == kind]

    def _before_step(self, process: SimProcess) -> None:
        kind = process.name.rstrip("0123456789")
        waiting = self._strikes[kind]
        self._steps[kind] += 1
        if not self.faults.on or not waiting or self._steps[kind] < waiting[0].steps:
            return
        strike = waiting.pop(0)
        self._steps[kind] = 0
        self.struck.append(f"{self.loop.time():.3f} {'kill' if strike.kills else 'pause'} {process.name}")
        if strike.kills:
            process.kill()
            self._outside(self._restart_later(process))
        else:
            process.pause()
            self._outside(self._resume_later(process))

    def _outside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that belongs to no process, though it begins inside one."""
        task = self.loop.create_task(work, context=Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _restart_later(self, process: SimProcess) -> None:
        await asyncio.sleep(self.random.uniform(0.1, 6))
        await self.restart(process.name)

    async def _resume_later(self, process: SimProcess) -> None:
        await asyncio.sleep(self.random.uniform(0.5, 20))
        process.resume()

    async def _main(self, kind: str, process: SimProcess, ready: "asyncio.Future[Any]") -> None:
        try:
            await self._serve(kind, process, ready)
        except Exception as error:
            if ready.done():
                self.failures.append(f"{process.name} ended: {error!r}")
            else:
                ready.set_exception(error)

    async def _serve(self, kind: str, process: SimProcess, ready: "asyncio.Future[Any]") -> None:
        database = await Database.connect(self._dsn, max_size=MAX_CONNECTIONS, application_name=process.name)
        shards = RoomShards({"main": database}, dict.fromkeys(range(PARTITIONS), "main"), PARTITIONS)
        clock = LoopClock(self.loop, self.random.randint(-5_000, 5_000))
        last_seen = LastSeenRecorder(database, clock)
        settings = Settings.for_tests(
            server_name=SERVER, presence={"enabled": False}, tessera={"federation": {"enabled": False}}
        )
        opening = open_federation(settings, [self._signing_key], database, clock, self._ids)
        async with opening as federation:
            around = Surroundings(
                settings=settings,
                accounts=database,
                shards=shards,
                commands=FaultyCommandBus(self.commands),
                records=FaultyRecordBus(self.records),
                fanout=FaultyFanout(self.fanout, process),
                clock=clock,
                ids=self._ids,
                limits=LocalRateLimits(clock, {}),
                last_seen=last_seen,
                authenticator=TokenAuthenticator(database, clock, last_seen),
                signing_key=self._signing_key,
                name=process.name,
                is_shared=True,
                federation=federation,
            )
            async with self._openers[kind](around) as service, asyncio.TaskGroup() as tasks:
                for background in service.background:
                    tasks.create_task(background())
                app = service.state.get("take")
                if service.routes:
                    routers = room_routes.room_routers() if kind == "gateway" else ()
                    state = {**service.state, "authenticator": Tokens()}
                    app = create_app(routes=service.routes["client"], routers=routers, state=state, ids=self._ids)
                ready.set_result(app)

    async def ask(self, kind: str, token: str, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """(status, JSON) from some process of a kind.

        Raises:
            ProcessDied: nobody lives there, or the process died meanwhile.
        """
        what = f"{method} {path}"
        return await self._have(kind, lambda app: call_app(app, token, method, path, body, query), what)

    async def hand_over(self, pdus: Sequence[object]) -> bool:
        """Give PDUs to some receiver; whether it has them now.

        Raises:
            ProcessDied: as `ask`.
        """
        taken: bool = await self._have("receiver", lambda take: take(pdus), "a transaction")
        return taken

    async def _have(self, kind: str, work: Callable[[Any], Coroutine[Any, Any, Any]], what: str) -> Any:
        member = self.random.choice(self.of_kind(kind))
        if member.app is None or member.process.dead:
            await asyncio.sleep(0.2)
            raise ProcessDied(member.name)
        asked = self.loop.time()
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await member.process.ask(work(member.app))
        except TimeoutError:
            raise ProcessDied(f"{member.name}: no answer since {asked:.3f} to {what}") from None

    def calm(self) -> None:
        """No more faults: everything that stands still goes on."""
        self.faults.on = self.faults.kafka_down = self.faults.redis_down = False
        self.commands.wake_all()
        self.records.wake_all()
        self.fanout.reset()
        for member in self.members.values():
            member.process.resume()

    def kill_all(self) -> None:
        """The end of the run."""
        for member in self.members.values():
            member.process.kill()
            self.buried.append(member.process)
        for process in self.buried:
            process.bury()


async def call_app(app: App, token: str, method: str, path: str, body: Any, query: Mapping[str, Any]) -> Any:
    """One request to an ASGI application: (status, JSON)."""
    sent = b"" if body is None else orjson.dumps(body)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(query).encode(),
        "root_path": "",
        "headers": [(b"authorization", f"Bearer {token}".encode()), (b"content-length", str(len(sent)).encode())],
        "client": ("192.0.2.7", 4711),
        "server": (SERVER, 80),
        "state": {},
    }
    received = False
    status = 0
    chunks: list[bytes] = []

    async def receive() -> dict[str, Any]:
        nonlocal received
        if received:
            await asyncio.get_running_loop().create_future()
        received = True
        return {"type": "http.request", "body": sent, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, orjson.loads(b"".join(chunks) or b"{}")
