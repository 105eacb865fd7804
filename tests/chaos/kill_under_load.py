"""SIGKILL the whole server under load, start it again, and look for what is missing, doubled or out of order.

    .venv/bin/python -m tests.chaos.kill_under_load --runs 50

Each run: senders write to several rooms with retries under one transaction ID (as clients do), listeners follow /sync
through the crash with their last token; at a random moment the server is killed. Afterwards: every
acknowledged message is in /messages exactly once, every listener saw every message exactly once, and all saw one order.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.fixtures.server_process import ServerProcess

SENDERS = 20
ROOMS = 5
LISTENERS = 4
MESSAGES = 15  # of each sender in a run
CATCH_UP_SECONDS = 60


@dataclass
class Account:
    """A user with a token; every call is retried until the server answers."""

    session: aiohttp.ClientSession
    base_url: str
    user_id: str
    token: str

    async def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One request with a client's patience: connection errors, 5xx and 429 are tried again."""
        for _ in range(600):
            try:
                headers = {"Authorization": f"Bearer {self.token}"}
                async with self.session.request(
                    method, f"{self.base_url}/_matrix/client/v3{path}", json=body, headers=headers
                ) as response:
                    answer: dict[str, Any] = await response.json()
                    if response.status == 200:
                        return answer
                    if response.status < 500 and response.status != 429:
                        raise AssertionError(f"{method} {path}: {response.status} {answer}")
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            await asyncio.sleep(0.1)
        raise AssertionError(f"{method} {path}: no answer")


@dataclass
class Ledger:
    """What was acknowledged: event IDs by room, with the text that was sent."""

    acknowledged: dict[str, dict[str, str]] = field(default_factory=dict)
    pauses: list[float] = field(default_factory=list)  # seconds of the sends that met the crash


@dataclass
class Listener:
    """Follows /sync and notes every message event of each room in the order of arrival."""

    account: Account
    token: str = ""
    order: dict[str, list[str]] = field(default_factory=dict)

    async def follow(self) -> None:
        """Long-poll for ever."""
        while True:
            path = f"/sync?timeout=5000&filter={quote(FILTER)}" + (f"&since={quote(self.token)}" if self.token else "")
            answer = await self.account.call("GET", path)
            for room_id, room in answer.get("rooms", {}).get("join", {}).items():
                if self.token and room["timeline"].get("limited"):
                    await self._fill_gap(room_id, room["timeline"]["prev_batch"])
                self.order.setdefault(room_id, []).extend(messages_of(room["timeline"]["events"]))
            self.token = answer["next_batch"]

    async def _fill_gap(self, room_id: str, prev_batch: str) -> None:
        """Page back from a limited timeline to what is known, as a client does."""
        known = set(self.order.get(room_id, ()))
        missing: list[str] = []
        start: str | None = prev_batch
        while start:
            path = f"/rooms/{quote(room_id)}/messages?dir=b&limit=100&from={quote(start)}"
            page = await self.account.call("GET", path)
            for event_id in messages_of(page["chunk"]):
                if event_id in known:
                    start = None
                    break
                missing.append(event_id)
            else:
                start = page.get("end") if page["chunk"] else None
        self.order.setdefault(room_id, []).extend(reversed(missing))


FILTER = '{"presence":{"types":[]},"room":{"timeline":{"limit":50},"ephemeral":{"types":[]}}}'


def messages_of(events: Sequence[dict[str, Any]]) -> list[str]:
    """The IDs of message events, in their order."""
    return [event["event_id"] for event in events if event["type"] == "m.room.message"]


async def register(server: ServerProcess, session: aiohttp.ClientSession, name: str) -> Account:
    """A new account through open registration."""
    body: dict[str, Any] = {"username": name, "password": "chaos-chaos"}
    url = f"{server.base_url}/_matrix/client/v3/register"
    async with session.post(url, json=body) as response:
        auth = {"type": "m.login.dummy", "session": (await response.json())["session"]}
    async with session.post(url, json={**body, "auth": auth}) as response:
        answer = await response.json()
        assert response.status == 200, answer
    return Account(session, server.base_url, answer["user_id"], answer["access_token"])


async def run(server: ServerProcess, *, runs: int, seed: int, report: Any = print) -> Ledger:
    """Crash the server `runs` times; raises AssertionError at the first thing missing, doubled or out of order."""
    chance = random.Random(seed)
    ledger = Ledger()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        prefix = f"chaos{seed}x{chance.randrange(10**9)}"
        senders = [await register(server, session, f"{prefix}s{n}") for n in range(SENDERS)]
        listeners = [Listener(await register(server, session, f"{prefix}l{n}")) for n in range(LISTENERS)]
        rooms = [await make_room(senders, listeners) for _ in range(ROOMS)]
        ledger.acknowledged = {room_id: {} for room_id in rooms}
        polls = [asyncio.create_task(listener.follow()) for listener in listeners]
        try:
            for number in range(runs):
                started = time.perf_counter()
                await one_crash(server, senders, rooms, ledger, number, chance)
                await catch_up(listeners, polls, ledger)
                await check(senders[0], listeners, ledger)
                total = sum(map(len, ledger.acknowledged.values()))
                took = time.perf_counter() - started
                report(f"run {number + 1}/{runs}: {total} messages acknowledged, all there once; {took:.1f} s")
        finally:
            for poll in polls:
                poll.cancel()
            await asyncio.gather(*polls, return_exceptions=True)
    return ledger


async def make_room(senders: Sequence[Account], listeners: Sequence[Listener]) -> str:
    """A public room with everybody in it."""
    room_id: str = (await senders[0].call("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    for account in [*senders[1:], *(listener.account for listener in listeners)]:
        await account.call("POST", f"/join/{quote(room_id)}", {})
    return room_id


async def one_crash(
    server: ServerProcess,
    senders: Sequence[Account],
    rooms: Sequence[str],
    ledger: Ledger,
    number: int,
    chance: random.Random,
) -> None:
    """All senders at work, the server killed at a random moment of it and started again."""

    async def work(sender: Account, index: int) -> None:
        for count in range(MESSAGES):
            room_id = rooms[(index + count) % len(rooms)]
            body = {"msgtype": "m.text", "body": f"{number}/{index}/{count}"}
            started = time.perf_counter()
            path = f"/rooms/{quote(room_id)}/send/m.room.message/{number}-{index}-{count}"
            event_id = (await sender.call("PUT", path, body))["event_id"]
            ledger.pauses.append(time.perf_counter() - started)
            assert event_id not in ledger.acknowledged[room_id], "one event ID for two sends"
            ledger.acknowledged[room_id][event_id] = body["body"]

    async def crash() -> None:
        await asyncio.sleep(chance.uniform(0.0, 0.4))
        await server.kill()
        await server.start()

    async with asyncio.TaskGroup() as group:
        for index, sender in enumerate(senders):
            group.create_task(work(sender, index))
        group.create_task(crash())


async def catch_up(listeners: Sequence[Listener], polls: Sequence[asyncio.Task[None]], ledger: Ledger) -> None:
    """Until every listener has as many messages as were acknowledged; check() says which are wrong."""
    deadline = time.perf_counter() + CATCH_UP_SECONDS
    wanted = {room_id: len(events) for room_id, events in ledger.acknowledged.items()}
    while time.perf_counter() < deadline:
        for poll in polls:
            if poll.done():
                poll.result()
        if all(len(li.order.get(room_id, ())) >= count for li in listeners for room_id, count in wanted.items()):
            return
        await asyncio.sleep(0.02)


async def check(reader: Account, listeners: Sequence[Listener], ledger: Ledger) -> None:
    """History and every listener agree on each acknowledged message, once, in one order."""
    for room_id, acknowledged in ledger.acknowledged.items():
        history = await read_history(reader, room_id)
        ids = [event["event_id"] for event in history]
        assert len(ids) == len(set(ids)), f"{room_id}: an event twice in /messages"
        lost = acknowledged.keys() - set(ids)
        assert not lost, f"{room_id}: acknowledged and lost: {[acknowledged[event_id] for event_id in lost]}"
        texts = [event["content"]["body"] for event in history]
        assert len(texts) == len(set(texts)), f"{room_id}: a message was sent twice"
        assert set(ids) == acknowledged.keys(), f"{room_id}: events that nobody was told of"
        for listener in listeners:
            seen = listener.order.get(room_id, [])
            assert seen == ids, f"{room_id}: {listener.account.user_id} saw {len(seen)} of {len(ids)}, or another order"


async def read_history(reader: Account, room_id: str) -> list[dict[str, Any]]:
    """Every message of a room, oldest first."""
    events: list[dict[str, Any]] = []
    start = ""
    while True:
        page = await reader.call("GET", f"/rooms/{quote(room_id)}/messages?dir=b&limit=500{start}")
        events += [event for event in page["chunk"] if event["type"] == "m.room.message"]
        if not page.get("end") or not page["chunk"]:
            return events[::-1]
        start = f"&from={quote(page['end'])}"


async def main() -> None:
    """Run the long form against a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tessera-chaos-") as folder:
        server = ServerProcess(Path(folder))
        await server.start()
        try:
            ledger = await run(server, runs=arguments.runs, seed=arguments.seed)
        finally:
            await server.stop()
    total = sum(map(len, ledger.acknowledged.values()))
    worst = sorted(ledger.pauses)
    print(
        f"{arguments.runs} crashes, {total} messages acknowledged by {SENDERS} senders: none lost, none doubled, "
        f"one order. "
        f"Send p50 {statistics.median(worst) * 1e3:.0f} ms, p99 {worst[int(len(worst) * 0.99)] * 1e3:.0f} ms, "
        f"longest {worst[-1]:.1f} s (a crash and a start in it)."
    )


if __name__ == "__main__":
    asyncio.run(main())
