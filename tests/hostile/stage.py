"""Where attacks are played: a real server with a user, a good peer and a hostile one that owns some names."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from bench.process_costs import rss_mib
from matrixcore.identifiers import EventId, RoomId
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.server_process import free_port
from tests.fixtures.whole_server import Device
from tests.hostile.hostile_peer import Answer, HostilePeer, hostile_peer

NAMES = ("huge.example", "loop.example", "drip.example", "inner.example", "led.example")
ARRIVES_SECONDS = 20.0
# As operators have them, in place of those of the other tests.
LIMITS = {"window_size": 1000, "sleep_limit": 10, "sleep_delay": 500, "reject_limit": 50, "concurrent": 3}


@dataclass
class Stage:
    """What an attack has.

    Attributes:
        alice: a user of the server.
        names: host name -> what answers for it, by way of a proxy that the server goes through to names.
        short: fewer of everything.
    """

    authority: PeerAuthority
    server: FederatedServer
    alice: Device
    good: HostilePeer
    evil: HostilePeer
    names: dict[str, Answer]
    short: bool
    reached: list[str] = field(default_factory=list)

    def count(self, long: int, short: int) -> int:
        """How many of something."""
        return short if self.short else long

    async def new_room(self, version: str = "11") -> RoomId:
        """A room of Alice's with both peers in it."""
        room_id = RoomId(await self.alice.make_room(preset="public_chat", room_version=version))
        await self.good.join(room_id, version)
        await self.evil.join(room_id, version)
        return room_id

    async def goes_on(self, room_id: RoomId, seconds: float = ARRIVES_SECONDS) -> float:
        """Alice speaks in a room, and so does the good peer; how many seconds that took."""
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            await self.alice.send(room_id, "still here")
            said = self.good.say(room_id)
            assert await self.good.results(said) == {said.event_id: {}}
            await self.arrived(room_id, said.event_id, seconds)
        return time.monotonic() - began

    async def content_of(self, room_id: RoomId, event_id: EventId) -> object:
        """What Alice reads of an event; None if there is no such event for her."""
        path = f"/rooms/{quote(room_id)}/event/{quote(event_id, safe='')}"
        status, answer = await self.alice.call("GET", path)
        return answer["content"] if status == 200 else None

    async def arrived(self, room_id: RoomId, event_id: EventId, seconds: float = ARRIVES_SECONDS) -> None:
        """When Alice can read an event."""
        await self.until(lambda: self._can_read(room_id, event_id), seconds)

    async def _can_read(self, room_id: RoomId, event_id: EventId) -> bool:
        return await self.content_of(room_id, event_id) is not None

    async def until(self, holds: Callable[[], Awaitable[bool]], seconds: float = ARRIVES_SECONDS) -> None:
        """When something is so."""
        end = time.monotonic() + seconds
        while not await holds():
            assert time.monotonic() < end, "it never came about"
            await asyncio.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of the server's process in MiB."""

    before: float
    peak: float
    after: float


@contextmanager
def watched(pid: int, seen: list[Memory]) -> Iterator[None]:
    """Note the memory of a process before, at most during and after a block."""
    before = rss_mib(pid)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from here
    yield
    seen.append(Memory(before, peak_mib(pid), rss_mib(pid)))


def peak_mib(pid: int) -> float:
    """The most resident memory that a process has had since that was last reset."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


@asynccontextmanager
async def opened_stage(folder: Path, authority: PeerAuthority, *, short: bool = False) -> AsyncIterator[Stage]:
    """A server that reaches names through a proxy of ours, and everybody else."""
    async with AsyncExitStack() as stack:
        names: dict[str, Answer] = {}
        reached: list[str] = []
        inside = await stack.enter_async_context(_names(authority, names))
        proxy = await stack.enter_async_context(_proxy(inside, reached))
        server = FederatedServer(
            folder,
            authority,
            https_proxy=f"http://127.0.0.1:{proxy}",
            no_proxy_hosts=["localhost", "127.0.0.1"],
            ip_range_blocklist=["169.254.0.0/16", "10.0.0.0/8"],
            rc_federation=LIMITS,
            rc_key_requests={"per_second": 10_000, "burst_count": 10_000},
        )
        await server.start()
        stack.push_async_callback(server.stop)
        api = await stack.enter_async_context(server.connected())
        good = await stack.enter_async_context(
            hostile_peer(authority, server.server_name, host="localhost", seed=b"\x10")
        )
        evil = await stack.enter_async_context(hostile_peer(authority, server.server_name))
        yield Stage(authority, server, await api.register("alice"), good, evil, names, short, reached)


@asynccontextmanager
async def _names(authority: PeerAuthority, answers: dict[str, Answer]) -> AsyncIterator[int]:
    """A server with a certificate for NAMES, that answers by the name it is asked for; its port."""

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = answers.get(request.host.partition(":")[0])
        return web.json_response({}, status=404) if answer is None else await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=authority.server_context(*NAMES)).start()
    yield port
    await runner.cleanup()


@asynccontextmanager
async def _proxy(port: int, reached: list[str]) -> AsyncIterator[int]:
    """A proxy that leads every name to one port; its own port."""

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await source.read(65_536):
                sink.write(piece)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            reached.append(head.split()[1].decode())
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
