"""SIGKILL the server under load while a bridge is told of it all, and look at what the bridge has got.

    .venv/bin/python -m tests.chaos.bridge_kills --runs 20

The bridge is in every room by its bot. It fails now and then, is slow, or takes a transaction whose answer is lost; a
second one is never there. Afterwards: a transaction that came again had the same bytes, and the bridge has every event
of every room exactly once but for such repetitions, in the order of the room.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import yaml
from aiohttp import web

from tests.chaos.kill_under_load import Account, register
from tests.fixtures.server_process import ServerProcess, free_port

SENDERS = 8
ROOMS = 3
MESSAGES = 12  # of each sender in a run
CATCH_UP_SECONDS = 60
AS_TOKEN = "as-token-of-the-bridge"
BOT = "@_chaos_bot:chat.example"


@dataclass
class Bridge:
    """What came, and how reliable it is."""

    chance: random.Random
    transactions: dict[str, bytes] = field(default_factory=dict)  # in the order of their first coming
    repeated: int = 0
    refused: int = 0
    is_calm: bool = False

    async def take(self, request: web.Request) -> web.Response:
        """A transaction, with the fate that it meets."""
        txn_id, body = request.match_info["txn_id"], await request.read()
        fate = 1.0 if self.is_calm else self.chance.random()
        if fate < 0.1:
            self.refused += 1
            return web.json_response({}, status=500)
        known = self.transactions.setdefault(txn_id, body)
        assert known == body, f"{txn_id} came again with other bytes"
        self.repeated += known is not body
        if fate < 0.2:
            assert request.transport is not None
            request.transport.close()
        elif fate < 0.4:
            await asyncio.sleep(self.chance.uniform(0, 0.2))
        return web.json_response({})

    def events(self) -> dict[str, list[str]]:
        """The IDs of the events by room, in the order in which the bridge took them in."""
        found: dict[str, list[str]] = {}
        for body in self.transactions.values():
            for event in orjson.loads(body)["events"]:
                found.setdefault(event["room_id"], []).append(event["event_id"])
        return found


@asynccontextmanager
async def running_bridge(folder: Path, chance: random.Random) -> AsyncIterator[tuple[Bridge, list[str]]]:
    """A bridge, and the registration files of it and of one that is never there."""
    bridge, port = Bridge(chance), free_port()
    app = web.Application(client_max_size=16 << 20)
    app.router.add_put("/_matrix/app/v1/transactions/{txn_id}", bridge.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    files = [_registration(folder, "chaos", port), _registration(folder, "gone", free_port())]
    try:
        yield bridge, [str(file) for file in files]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def bridged_server(folder: Path, chance: random.Random) -> AsyncIterator[tuple[ServerProcess, Bridge]]:
    """A server that knows both."""
    async with running_bridge(folder, chance) as (bridge, files):
        server = ServerProcess(folder / "server", app_service_config_files=files)
        await server.start()
        try:
            yield server, bridge
        finally:
            await server.stop()


def _registration(folder: Path, name: str, port: int) -> Path:
    token = AS_TOKEN if name == "chaos" else f"as-token-of-{name}"
    path = folder / f"{name}.yaml"
    data = {
        "id": name,
        "url": f"http://127.0.0.1:{port}",
        "as_token": token,
        "hs_token": f"hs-token-of-{name}",
        "sender_localpart": f"_{name}_bot",
        "namespaces": {"rooms": [{"exclusive": False, "regex": "!.*"}] if name == "gone" else []},
    }
    path.write_text(yaml.safe_dump(data))
    return path


async def kill_and_start(server: ServerProcess) -> None:
    """The whole server ends, and comes back."""
    await server.kill()
    await server.start()


async def run(
    server: ServerProcess,
    bridge: Bridge,
    *,
    runs: int,
    seed: int,
    crash: Callable[[ServerProcess], Awaitable[None]] = kill_and_start,
    report: Any = print,
) -> int:
    """Crash the server `runs` times; how many events the bridge was told of.

    Raises:
        AssertionError: something is missing, doubled, altered or out of order.
    """
    chance = random.Random(seed)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        senders = [await register(server, session, f"bridge{seed}s{number}") for number in range(SENDERS)]
        bot = Account(session, server.base_url, BOT, AS_TOKEN)
        rooms = [await _make_room(senders, bot) for _ in range(ROOMS)]
        for number in range(runs):
            bridge.is_calm = False
            started = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for index, sender in enumerate(senders):
                    group.create_task(_work(sender, rooms, number, index))
                group.create_task(_crash(server, chance, crash))
            bridge.is_calm = True
            histories = {room_id: await _history(senders[0], room_id) for room_id in rooms}
            await _catch_up(bridge, histories)
            for room_id, history in histories.items():
                told = bridge.events()[room_id]
                expected = history[history.index(told[0]) :]  # from the bot's join on
                assert told == expected, f"{room_id}: told of {len(told)} events, {len(expected)} are there"
            report(
                f"run {number + 1}/{runs}: {sum(map(len, histories.values()))} events, {bridge.repeated} transactions"
                f" repeated, {bridge.refused} refused; {time.perf_counter() - started:.1f} s"
            )
    return sum(map(len, bridge.events().values()))


async def _make_room(senders: list[Account], bot: Account) -> str:
    room_id: str = (await senders[0].call("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    for account in [bot, *senders[1:]]:
        await account.call("POST", f"/join/{quote(room_id)}", {})
    return room_id


async def _work(sender: Account, rooms: list[str], number: int, index: int) -> None:
    for count in range(MESSAGES):
        room_id = rooms[(index + count) % len(rooms)]
        body = {"msgtype": "m.text", "body": f"{number}/{index}/{count}"}
        await sender.call("PUT", f"/rooms/{quote(room_id)}/send/m.room.message/{number}-{index}-{count}", body)


async def _crash(
    server: ServerProcess, chance: random.Random, crash: Callable[[ServerProcess], Awaitable[None]]
) -> None:
    await asyncio.sleep(chance.uniform(0.0, 0.6))
    await crash(server)


async def _catch_up(bridge: Bridge, histories: dict[str, list[str]]) -> None:
    deadline = time.perf_counter() + CATCH_UP_SECONDS
    while time.perf_counter() < deadline:
        told = bridge.events()
        if all(told.get(room_id, [""])[-1] == history[-1] for room_id, history in histories.items()):
            return
        await asyncio.sleep(0.05)


async def _history(reader: Account, room_id: str) -> list[str]:
    """Every event of a room, oldest first."""
    events: list[str] = []
    start = ""
    while True:
        page = await reader.call("GET", f"/rooms/{quote(room_id)}/messages?dir=b&limit=500{start}")
        events += [event["event_id"] for event in page["chunk"]]
        if not page.get("end") or not page["chunk"]:
            return events[::-1]
        start = f"&from={quote(page['end'])}"


async def main() -> None:
    """Run the long form against a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tessera-bridge-") as folder:
        async with bridged_server(Path(folder), random.Random(arguments.seed)) as (server, bridge):
            told = await run(server, bridge, runs=arguments.runs, seed=arguments.seed)
    print(
        f"{arguments.runs} crashes: {told} events in {len(bridge.transactions)} transactions, each once and in order; "
        f"{bridge.repeated} transactions came again with the same bytes, {bridge.refused} were refused first"
    )


if __name__ == "__main__":
    asyncio.run(main())
