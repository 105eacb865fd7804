"""Joining a large room of another server: how soon its messages are read, and the memory that takes.

`python -m bench.large_join [stub] [tessera] [synapse] [--members 20000]`: a stub hosts a room with so many members of
four servers. A resident server (a Tessera, then a Synapse with a PostgreSQL) joins it there; then a second Tessera
joins through the resident. Taken are, from the join's begin: its answer, a message of before that /messages shows, and
a message that the resident's user sends then; and the peak memory of the joining server's process. `stub` takes the
answer of a join through the stub itself, which has no history.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson
from aiohttp import web

from bench.inbound_pdus import synapse_database
from bench.outbound_pdus import addresses, peak_mib
from bench.process_costs import cpu_seconds, family, rss_mib
from matrixcore.events import parse_event
from matrixcore.identifiers import ServerName, UserId, server_of
from matrixcore.signing import SigningKey, sign_json
from tessera.clock import SystemClock
from tessera.embedded_postgres import EmbeddedPostgres
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.foreign_room import ForeignRoom
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.server_process import free_port
from tests.fixtures.synapse import SynapseServer
from tests.fixtures.whole_server import Device

NAMES = ("stub", "tessera", "synapse")
SERVERS = 4  # so that the resident is among those that are asked for history
KEY = SigningKey("host", b"\x05" * 32)  # of all of them
WAIT_SECONDS = 300.0
V1, V2 = "/_matrix/federation/v1/", "/_matrix/federation/v2/"
CLOCK = SystemClock()


@dataclass
class Host:
    """The servers of the members, which know no history; the first of them lets others join.

    Attributes:
        names: of the servers, all behind one port.
    """

    names: list[ServerName]
    room: ForeignRoom
    answers: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, port: int, members: int) -> "Host":
        """With a room of so many members."""
        names = [ServerName(name) for name in addresses(4, SERVERS, port)]
        room = ForeignRoom(server=names[0], key=KEY, creator=UserId(f"@host:{names[0]}"))
        for number in range(members - 1):
            user = UserId(f"@member{number}:{names[number % SERVERS]}")
            content = {"membership": "join", "displayname": f"Member {number}"}
            room.add(room.make("m.room.member", content, sender=user, state_key=user, server=server_of(user), key=KEY))
        return cls(names, room)

    async def handle(self, request: web.Request) -> web.Response:
        """Whatever a server that joins asks."""
        if request.path == "/_matrix/key/v2/server":
            return web.json_response(self._keys(request.host))
        if request.path.startswith(f"{V1}make_join/"):
            return web.json_response(self.room.join_template(request.path.rpartition("/")[2], CLOCK.now_ms()))
        if request.path.startswith(f"{V2}send_join/"):
            return web.Response(body=self._join(await request.read()), content_type="application/json")
        if request.path.startswith(f"{V1}send/"):
            return web.json_response({"pdus": {}})
        return web.json_response({"errcode": "M_NOT_FOUND", "error": "nothing"}, status=404)

    def _keys(self, name: str) -> dict[str, Any]:
        document = {
            "server_name": name,
            "valid_until_ts": CLOCK.now_ms() + 86_400_000,
            "verify_keys": {KEY.key_id: {"key": KEY.public_key_base64}},
            "old_verify_keys": {},
        }
        return sign_json(document, name, KEY)

    def _join(self, body: bytes) -> bytes:
        join, state = parse_event(body, self.room.rules), list(self.room.state.values())
        answer = {
            "state": [dict(event.fields) for event in state],
            "auth_chain": [dict(event.fields) for event in self.room.auth_chain([*state, join])],
            "event": dict(join.fields),
            "origin": self.names[0],
            "members_omitted": False,
        }
        self.room.add(join)
        return orjson.dumps(answer)


@asynccontextmanager
async def running_host(authority: PeerAuthority, members: int) -> AsyncIterator[Host]:
    """The host, reachable by all its names."""
    port = free_port()
    host = await asyncio.to_thread(Host.of, port, members)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{tail:.*}", host.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = authority.server_context(*(name.partition(":")[0] for name in host.names))
    await web.TCPSite(runner, "0.0.0.0", port, ssl_context=context).start()
    yield host
    await runner.cleanup()


async def join(device: Device, room_id: str, server: str) -> float:
    """Join by way of a server; the seconds that took."""
    began = time.monotonic()
    status, answer = await device.call("POST", f"/join/{quote(room_id)}", {}, server_name=server, via=server)
    assert status == 200, answer
    return time.monotonic() - began


async def until_read(device: Device, room_id: str, event_id: str) -> None:
    """When /messages shows an event."""
    end = time.monotonic() + WAIT_SECONDS
    path = f"/rooms/{quote(room_id)}/messages"
    while True:
        status, answer = await device.call("GET", path, dir="b", limit="20")
        if status == 200 and any(one["event_id"] == event_id for one in answer["chunk"]):
            return
        assert time.monotonic() < end, (status, answer)
        await asyncio.sleep(0.05)


async def measure(name: str, resident: Device, its_name: str, host: Host, joining: FederatedServer) -> None:
    """Fill the resident, join through it, and print."""
    room_id = host.room.room_id
    filled = await join(resident, room_id, host.names[0])
    print(f"{name} has joined a room of {len(host.room.state) - 4} members after {filled:.1f} s", flush=True)
    before = await resident.send(room_id, "before")
    async with joining.connected() as api:
        device = await api.register("joiner")
        await asyncio.sleep(2.0)
        noted = Noted.of(joining.pid)
        joined = await join(device, room_id, its_name)
        await until_read(device, room_id, before)
        read = time.monotonic() - noted.began
        after = await resident.send(room_id, "after")
        await until_read(device, room_id, after)
        heard = time.monotonic() - noted.began
        body = {"msgtype": "m.text", "body": "hello"}
        status, answer = await device.call("PUT", f"/rooms/{quote(room_id)}/send/m.room.message/1", body)
        assert status == 200, answer
    print(
        f"Tessera through {name}: joined after {joined:.1f} s, a message of before read after {read:.1f} s, a new one"
        f" after {heard:.1f} s; {noted.told()}",
        flush=True,
    )


async def measure_stub(host: Host, joining: FederatedServer) -> None:
    """Join through the stub, and print."""
    async with joining.connected() as api:
        device = await api.register("joiner")
        await asyncio.sleep(2.0)
        noted = Noted.of(joining.pid)
        joined = await join(device, host.room.room_id, host.names[0])
    print(f"Tessera through stub: joined after {joined:.1f} s; {noted.told()}", flush=True)


@dataclass(frozen=True)
class Noted:
    """What a server had taken when its join began.

    Attributes:
        rss: MiB.
        spent: CPU seconds of all its processes, its PostgreSQL's too.
    """

    pid: int
    rss: float
    spent: float
    began: float

    @classmethod
    def of(cls, pid: int) -> "Noted":
        """Now."""
        return cls(pid, rss_mib(pid), costs(pid), time.monotonic())

    def told(self) -> str:
        """And what it has taken since."""
        return (
            f"memory {self.rss:.0f} MiB before, at most {peak_mib(self.pid):.0f} MiB;"
            f" CPU with its database {costs(self.pid) - self.spent:.1f} s"
        )


def costs(pid: int) -> float:
    """CPU seconds of a process and all that it started."""
    return sum(map(cpu_seconds, family(pid)))


async def run(names: list[str], members: int) -> None:
    """All residents that are asked for, one after the other."""
    with tempfile.TemporaryDirectory(prefix="lj-") as text:
        folder = Path(text)
        (folder / "ca").mkdir()
        authority = PeerAuthority(folder / "ca")
        for name in names:
            async with AsyncExitStack() as stack:
                joining = FederatedServer(folder / f"{name}-joining", authority)
                host = await stack.enter_async_context(running_host(authority, members))
                await joining.start()
                stack.push_async_callback(joining.stop)
                if name == "stub":
                    await measure_stub(host, joining)
                elif name == "tessera":
                    server = FederatedServer(folder / "resident", authority)
                    await server.start()
                    stack.push_async_callback(server.stop)
                    resident = await (await stack.enter_async_context(server.connected())).register("resident")
                    await measure("tessera", resident, server.server_name, host, joining)
                else:
                    postgres = await stack.enter_async_context(EmbeddedPostgres(folder / "postgres"))
                    database = await synapse_database(postgres)
                    synapse = SynapseServer(folder / "synapse", authority, database=database)
                    await asyncio.to_thread(synapse.start)
                    stack.push_async_callback(asyncio.to_thread, synapse.stop)
                    api = await stack.enter_async_context(synapse.connected())
                    api.http.timeout = httpx.Timeout(WAIT_SECONDS)
                    resident = await api.register("resident")
                    await measure("synapse", resident, synapse.server_name, host, joining)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="|".join(NAMES))
    parser.add_argument("--members", type=int, default=20_000)
    arguments = parser.parse_args()
    if wrong := set(arguments.names).difference(NAMES):
        parser.error(f"unknown: {', '.join(wrong)}")
    asyncio.run(run(arguments.names or list(NAMES), arguments.members))


if __name__ == "__main__":
    main()
