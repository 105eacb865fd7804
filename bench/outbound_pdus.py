"""Sending to many servers most of which are dead: how soon the living hear of a message, and what that takes.

`python -m bench.outbound_pdus [--live 200] [--dead 4800]`: one room with a member of each server. The living are
addresses of this machine (127.3.x.y) that take transactions over TLS; of the dead five in six refuse connections and
the others accept them and say nothing. First a message finds out who is dead; then messages go out at an even rate,
and for each living server the time from a send's begin until the server has the event is taken.
"""

import argparse
import asyncio
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp
import asyncpg
import orjson
from aiohttp import web

from bench.process_costs import cpu_seconds, family, rss_mib
from matrixcore.identifiers import RoomId
from tessera.embedded_postgres import EmbeddedPostgres
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.server_process import free_port
from tests.fixtures.whole_server import Device

SILENT_SHARE = 6  # one in so many of the dead accepts connections
FIND_OUT_SECONDS = 240.0
ARRIVE_SECONDS = 60.0

_MEMBERS = """
WITH new AS (
    SELECT '@member:' || server AS user_id, '$' || md5(server) AS event_id, server
    FROM unnest($2::text[]) AS i (server)
), at AS (
    SELECT last_position - 1 AS position FROM rooms.rooms WHERE room_id = $1
), events AS (
    INSERT INTO rooms.events (room_id, event_id, type, state_key, sender, membership, depth, origin_server_ts,
                              received_ms, outlier, pdu)
    SELECT $1, event_id, 'm.room.member', user_id, user_id, 'join', 1, 1, 1, true, '{}' FROM new
), history AS (
    INSERT INTO rooms.state_history SELECT $1, 'm.room.member', user_id, position, 0, event_id, 'join' FROM new, at
), state AS (
    INSERT INTO rooms.current_state SELECT $1, 'm.room.member', user_id, event_id, position, 0, 'join' FROM new, at
), servers AS (
    INSERT INTO rooms.room_servers (room_id, server_name, joined_count) SELECT $1, server, 1 FROM new
)
UPDATE rooms.rooms SET joined_count = joined_count + cardinality($2::text[]) WHERE room_id = $1
"""
_FAILING = "SELECT count(*) FROM accounts.federation_destinations WHERE failures > 0"


@dataclass
class Living:
    """The servers that answer, all of them behind one port.

    Attributes:
        arrived: number of the message -> server -> when it came, by the monotonic clock.
    """

    port: int = 0
    arrived: dict[int, dict[str, float]] = field(default_factory=dict)
    transactions: int = 0

    async def take(self, request: web.Request) -> web.Response:
        """PUT /send."""
        now = time.monotonic()
        self.transactions += 1
        for pdu in orjson.loads(await request.read()).get("pdus", ()):
            number = pdu.get("content", {}).get("number")
            if number is not None:
                self.arrived.setdefault(number, {}).setdefault(request.host, now)
        return web.json_response({"pdus": {}})


def addresses(net: int, count: int, port: int) -> list[str]:
    """Names of so many servers on this machine."""
    return [f"127.{net}.{number // 250}.{number % 250 + 1}:{port}" for number in range(count)]


async def add_members(folder: Path, room_id: RoomId, servers: Sequence[str]) -> None:
    """Let a user of each server be in the room, as after joins; the server must not run."""
    async with EmbeddedPostgres(folder / "postgres") as postgres:
        connection = await asyncpg.connect(postgres.dsn())
        for start in range(0, len(servers), 1_000):
            await connection.execute(_MEMBERS, room_id, list(servers[start : start + 1_000]))
        await connection.close()


async def send(session: aiohttp.ClientSession, base: str, device: Device, room_id: RoomId, number: int) -> float:
    """Send a message; when that was begun."""
    began = time.monotonic()
    url = f"{base}/_matrix/client/v3/rooms/{quote(room_id)}/send/m.room.message/n{number}"
    body = {"msgtype": "m.text", "body": "A message for everybody", "number": number}
    async with session.put(url, json=body, headers={"Authorization": f"Bearer {device.token}"}) as answer:
        assert answer.status == 200, await answer.text()
    return began


async def until_arrived(living: Living, number: int, servers: int) -> None:
    """When every living server has a message, or too long after it."""
    end = time.monotonic() + ARRIVE_SECONDS
    # The servers note what arrives and wake nobody, as that would cost the machine that is measured.
    while len(living.arrived.get(number, ())) < servers and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def find_out(server: FederatedServer, dead: int) -> None:
    """When all that are dead are known to be."""
    dsn = EmbeddedPostgres(server.folder / "postgres").find_running_dsn()
    assert dsn is not None
    connection = await asyncpg.connect(dsn)
    end = time.monotonic() + FIND_OUT_SECONDS
    # Another process finds out; only its tables tell.
    while (found := await connection.fetchval(_FAILING)) < dead and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(1.0)
    print(f"  {found} of {dead} dead servers are known to be", flush=True)
    await connection.close()


def said(name: str, delays: Sequence[float], wanted: int) -> str:
    """A line about some deliveries."""
    ordered = sorted(delays)
    if not ordered:
        return f"{name}: none of {wanted} arrived"
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return (
        f"{name}: {len(ordered)} of {wanted} deliveries, p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms,"
        f" longest {ordered[-1] * 1e3:.0f} ms"
    )


async def measure(
    server: FederatedServer, device: Device, room_id: RoomId, living: Living, arguments: argparse.Namespace
) -> None:
    """The first message, and then many."""
    begun: dict[int, float] = {}
    async with aiohttp.ClientSession() as session:

        async def say(number: int) -> None:
            begun[number] = await send(session, server.base_url, device, room_id, number)

        def delays(numbers: range) -> list[float]:
            return [at - begun[number] for number in numbers for at in living.arrived.get(number, {}).values()]

        await say(0)
        await until_arrived(living, 0, arguments.live)
        print(said("the first message", delays(range(1)), arguments.live), flush=True)
        await find_out(server, arguments.dead)
        before, started = sum(map(cpu_seconds, family(server.pid))), time.monotonic()
        numbers = range(1, 1 + int(arguments.seconds * arguments.rate))
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(say(number))
                await asyncio.sleep(max(0.0, started + number / arguments.rate - time.monotonic()))
        await until_arrived(living, numbers[-1], arguments.live)
        spent = sum(map(cpu_seconds, family(server.pid))) - before
    wanted = arguments.live * len(numbers)
    print(said(f"{len(numbers)} messages, {arguments.rate:g} a second", delays(numbers), wanted))
    print(
        f"  CPU of the server and its database {spent:.1f} s in {time.monotonic() - started:.0f} s"
        f" ({1e3 * spent / wanted:.2f} ms a delivery); memory {rss_mib(server.pid):.0f} MiB,"
        f" at most {peak_mib(server.pid):.0f} MiB; {living.transactions} transactions"
    )


def peak_mib(pid: int) -> float:
    """The most resident memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def run(arguments: argparse.Namespace) -> None:
    """Make the server, its room and its peers."""
    with tempfile.TemporaryDirectory(prefix="op-") as text, socket.socket() as silent:
        folder = Path(text)
        (folder / "ca").mkdir()
        authority, living = PeerAuthority(folder / "ca"), Living()
        silent.bind(("0.0.0.0", 0))
        silent.listen(4096)
        living.port = free_port()
        names = addresses(3, arguments.live, living.port)
        mute = arguments.dead // SILENT_SHARE
        dead = addresses(1, mute, silent.getsockname()[1]) + addresses(2, arguments.dead - mute, free_port())
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", living.take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        context = authority.server_context(*(name.partition(":")[0] for name in names))
        await web.TCPSite(runner, "0.0.0.0", living.port, ssl_context=context, backlog=1_024).start()
        server = FederatedServer(folder / "server", authority)
        await server.start()
        try:
            async with server.connected() as api:
                device = await api.register("speaker")
                room_id = RoomId(await device.make_room(preset="public_chat"))
                await server.stop()
                await add_members(server.folder, room_id, [*names, *dead])
                await server.start()
                print(f"{arguments.live} servers live, {mute} say nothing, {arguments.dead - mute} refuse", flush=True)
                await measure(server, device, room_id, living, arguments)
        finally:
            await server.stop()
            await runner.cleanup()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", type=int, default=200)
    parser.add_argument("--dead", type=int, default=4_800)
    parser.add_argument("--rate", type=float, default=1.0, help="messages a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
