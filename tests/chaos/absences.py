"""Valkey away for half a minute, then Kafka, under load: what users see (DESIGN section 11).

    .venv/bin/python -m tests.chaos.absences --seconds 30

While Valkey is away sends and /sync go on, slower. While Kafka is away reads and /sync go on, a send is answered 503
with retry_after_ms within its deadline and does not happen later; after its return everything catches up. In the end
the checker of the other chaos tests looks for what is lost, doubled or out of order, and for sends that were refused
and happened all the same.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp

from tests.chaos.cluster_chaos import Load, Machine, make_rooms, rooms_of, running_machine
from tests.chaos.kill_under_load import Account, Ledger, Listener, catch_up, check, read_history, register

LOAD = Load(sends_a_second=10, rooms=8, listeners=8, members=4)


@dataclass
class Phase:
    """What was answered while something was away."""

    name: str
    answers: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)  # seconds until a send's first answer
    reads: list[float] = field(default_factory=list)  # seconds of a /messages
    delivered: int = 0  # events that reached a /sync meanwhile

    def line(self) -> str:
        """For people."""
        waits, reads = sorted(self.waits), sorted(self.reads)
        answers = ", ".join(f"{count} x {answer}" for answer, count in sorted(self.answers.items()))
        first = f"first answer p50 {statistics.median(waits):.2f} s, longest {waits[-1]:.1f} s"
        return (
            f"{self.name}: sends {answers}; {first};"
            f" /messages p50 {statistics.median(reads) * 1e3:.0f} ms, longest {reads[-1]:.1f} s;"
            f" {self.delivered} events delivered"
        )


@dataclass
class Impatient:
    """Sends that are tried once: what a user sees."""

    account: Account
    rooms: list[str]
    ledger: Ledger
    refused: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    count: int = 0

    async def send(self, phase: Phase) -> None:
        """One send, whatever is answered."""
        self.count += 1
        room_id, text = self.rooms[self.count % len(self.rooms)], f"once-{self.count}"
        url = f"{self.account.base_url}/_matrix/client/v3/rooms/{quote(room_id)}/send/m.room.message/{text}"
        headers = {"Authorization": f"Bearer {self.account.token}"}
        started = time.perf_counter()
        try:
            body = {"msgtype": "m.text", "body": text}
            async with self.account.session.put(url, json=body, headers=headers) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError):
            phase.answers["no answer"] += 1
            self.unanswered.add(text)
            return
        phase.waits.append(time.perf_counter() - started)
        phase.answers[str(response.status)] += 1
        if response.status == 200:
            self.ledger.acknowledged[room_id][answer["event_id"]] = text
            return
        assert response.status in (503, 429), answer
        assert answer["retry_after_ms"] > 0, answer
        self.refused.add(text)


async def run(machine: Machine, *, seconds: float, report: Callable[[str], None] = print) -> list[Phase]:
    """Take Valkey away, then Kafka; raises AssertionError at whatever is lost, doubled or happened after a refusal."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        sender = await register(machine.cluster, session, "impatient")
        listeners = [Listener(await register(machine.cluster, session, f"listener{n}")) for n in range(LOAD.listeners)]
        rooms = await make_rooms(sender, listeners, LOAD, random.Random(1))
        ledger = Ledger({room_id: {} for room_id in rooms})
        sending = Impatient(sender, list(rooms), ledger)
        polls = [asyncio.create_task(listener.follow()) for listener in listeners]
        phases: list[Phase] = []
        try:
            for name, leave, come_back in (
                ("all there", None, None),
                ("Valkey away", machine.valkey.kill, machine.valkey.restart),
                ("Kafka away", machine.broker.kill, machine.broker.start),
                ("all back", None, None),
            ):
                phases.append(await _phase(name, seconds, sending, listeners, leave))
                report(phases[-1].line())
                if come_back is not None:
                    await asyncio.to_thread(come_back)
                    await _until_sends_go(sending)
            await _check(sending, listeners, polls, rooms)
        finally:
            for poll in polls:
                poll.cancel()
            await asyncio.gather(*polls, return_exceptions=True)
    return phases


async def _phase(
    name: str, seconds: float, sending: Impatient, listeners: list[Listener], leave: Callable[[], None] | None
) -> Phase:
    phase = Phase(name)
    if leave is not None:
        await asyncio.to_thread(leave)
    heard = _heard(listeners)
    reader = listeners[0].account
    end = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        while time.perf_counter() < end:
            group.create_task(sending.send(phase))
            await asyncio.sleep(1 / LOAD.sends_a_second)
            if sending.count % 10 == 0:
                group.create_task(_read(reader, listeners[0], phase))
    phase.delivered = _heard(listeners) - heard
    return phase


async def _read(reader: Account, listener: Listener, phase: Phase) -> None:
    if not listener.order:
        return
    started = time.perf_counter()
    await reader.call("GET", f"/rooms/{quote(next(iter(listener.order)))}/messages?dir=b&limit=20")
    phase.reads.append(time.perf_counter() - started)


def _heard(listeners: list[Listener]) -> int:
    return sum(len(order) for listener in listeners for order in listener.order.values())


async def _until_sends_go(sending: Impatient) -> None:
    async with asyncio.timeout(60):
        while True:
            phase = Phase("trying")
            await sending.send(phase)
            if phase.answers["200"]:
                return


async def _check(
    sending: Impatient, listeners: list[Listener], polls: list[asyncio.Task[None]], rooms: dict[str, list[Listener]]
) -> None:
    history = [event for room_id in rooms for event in await read_history(sending.account, room_id)]
    happened = {event["content"]["body"] for event in history}
    wrong = happened & sending.refused
    assert not wrong, f"refused, and happened all the same: {sorted(wrong)}"
    for event in history:  # a send without an answer may have happened: then once, for all
        if event["content"]["body"] in sending.unanswered:
            sending.ledger.acknowledged[event["room_id"]][event["event_id"]] = event["content"]["body"]
    for listener, own_rooms in zip(listeners, rooms_of(listeners, rooms), strict=True):
        part = Ledger({room_id: sending.ledger.acknowledged[room_id] for room_id in own_rooms})
        await catch_up([listener], polls, part)
        await check(listener.account, [listener], part)


async def main() -> None:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tc-") as folder:
        async with running_machine(Path(folder)) as machine:
            await run(machine, seconds=arguments.seconds)


if __name__ == "__main__":
    asyncio.run(main())
