"""A cluster under load whose every process is replaced by one of another release, one at a time, and then back.

    .venv/bin/python -m tests.chaos.rolling_restart --old HEAD~1

It begins with the old release. The new one's migration runs first, while everything goes on; then each process gets
SIGTERM, drains, and one of the new release takes its place. When all are new they are rolled back to the old ones.
The clients (30 sends a second into 40 rooms, 40 listeners, reads, a room made each second, a download) count every
answer that is not 200 and every broken connection: a client without any retry would have met them. In the end each
acknowledged event is in /messages exactly once and reached each member's /sync exactly once, all in one order.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from services.cluster.plan import Counts
from tests.chaos.cluster_chaos import Load, Report, Sending, make_rooms, rooms_of
from tests.chaos.kill_under_load import Account, Ledger, Listener, catch_up, check, register
from tests.chaos.rolling_cluster import RollingCluster, Slot, rolling_cluster, worktree

COUNTS = Counts(gateways=2, writers=3, syncs=2, media=2, projectors=2)
# As docs/operations.md has it.
ORDER = ("projector", "push", "appservice", "federation-out", "rooms", "sync", "media", "federation-in", "gateway")
ATTEMPTS = 100
SETTLE_SECONDS = 2.0  # after each replacement
QUIET_SECONDS = 10.0  # before and after, to compare with
BETWEEN = "nothing"


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client met that does not try again."""

    step: str
    request: str
    problem: str


@dataclass
class Course:
    """What is being rolled now, and what failed meanwhile."""

    sending: Sending | None = None
    requests: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def step(self) -> str:
        """The service that is being replaced."""
        return BETWEEN if self.sending is None else self.sending.fault

    def begin(self, step: str) -> None:
        """From now on."""
        if self.sending is not None:
            self.sending.fault = step


class StrictAccount(Account):
    """A user whose every failed request is noted; it is sent again only so that the course can go on."""

    course: Course

    @classmethod
    def of(cls, account: Account, course: Course) -> "StrictAccount":
        """The same user."""
        made = cls(account.session, account.base_url, account.user_id, account.token)
        made.course = course
        return made

    async def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One request that is to succeed at once."""
        for _ in range(ATTEMPTS):
            self.course.requests += 1
            step = self.course.step
            headers = {"Authorization": f"Bearer {self.token}"}
            url = f"{self.base_url}/_matrix/client/v3{path}"
            try:
                async with self.session.request(method, url, json=body, headers=headers) as response:
                    answer: dict[str, Any] = await response.json()
                    if response.status == 200:
                        return answer
                    problem = f"{response.status} {answer}"
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                problem = repr(error)
            self.course.failures.append(Failure(step, f"{method} {path.partition('?')[0]}", problem))
            await asyncio.sleep(0.1)
        raise AssertionError(f"{method} {path}: {problem}")


@dataclass
class Reading:
    """What people do beside sending and listening: look back, make rooms, look at pictures."""

    account: StrictAccount
    rooms: Sequence[str]
    picture: str
    count: int = 0

    async def run(self) -> None:
        """Until it is cancelled, each second."""
        while True:
            self.count += 1
            room_id = quote(self.rooms[self.count % len(self.rooms)])
            await asyncio.gather(
                self.account.call("GET", f"/rooms/{room_id}/messages?dir=b&limit=10"),
                self.account.call("GET", "/joined_rooms"),
                self.account.call("POST", "/createRoom", {"preset": "private_chat"}),
                self._download(),
            )
            await asyncio.sleep(1)

    async def _download(self) -> None:
        account, course = self.account, self.account.course
        course.requests += 1
        url = f"{account.base_url}/_matrix/client/v1/media/download/{self.picture}"
        try:
            async with account.session.get(url, headers={"Authorization": f"Bearer {account.token}"}) as response:
                length = len(await response.read())
                if response.status == 200 and length == len(PICTURE):
                    return
                problem = f"{response.status}, {length} bytes"
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            problem = repr(error)
        course.failures.append(Failure(course.step, "GET media", problem))


PICTURE = bytes(range(256)) * 1024


@dataclass
class Outcome:
    """What is said in the end."""

    report: Report
    course: Course
    rolled: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """For people."""
        sends = sum(map(len, self.report.ledger.acknowledged.values()))
        said = [
            f"{self.rolled.total()} processes replaced in {self.seconds:.0f} s; {self.course.requests} requests, "
            f"{len(self.course.failures)} failed; {sends} sends acknowledged: none lost, none doubled, one order"
        ]
        for step, pauses in sorted(self.report.pauses.items()):
            ordered = sorted(pauses)
            p50, p99 = (ordered[int(len(ordered) * part)] * 1e3 for part in (0.5, 0.99))
            said.append(
                f"  {step} ({self.rolled[step]}): {len(ordered)} sends, p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
                f"longest {ordered[-1] * 1e3:.0f} ms"
            )
        for (step, request, problem), count in Counter(
            (one.step, _shape(one.request), one.problem[:200]) for one in self.course.failures
        ).most_common(20):
            said.append(f"  FAILED {count} times while {step} was rolled: {request}: {problem}")
        return said


def _shape(request: str) -> str:
    """A request without what differs between requests."""
    words = request.split("/")
    return "/".join("…" if "%21" in word or (word[:1] == "t" and word[1:].isdigit()) else word for word in words)


async def run(
    cluster: RollingCluster,
    old: Path,
    new: Path,
    *,
    load: Load,
    seed: int = 1,
    quiet_seconds: float = QUIET_SECONDS,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Roll old to new and back; raises AssertionError at what is lost, doubled or out of order."""
    course, chance = Course(), random.Random(seed)
    await cluster.start_all(old)
    say(f"{len(cluster.slots)} processes of the old release run")
    outcome = Outcome(Report(), course)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        sender = StrictAccount.of(await register(cluster.server, session, "sender"), course)
        names = [f"listener{number}" for number in range(load.listeners)]
        accounts = [await register(cluster.server, session, name) for name in names]
        listeners = [Listener(StrictAccount.of(account, course)) for account in accounts]
        rooms = await make_rooms(sender, listeners, load, chance)
        ledger = outcome.report.ledger
        ledger.acknowledged = {room_id: {} for room_id in rooms}
        sending = course.sending = Sending(sender, list(rooms), outcome.report, load)
        reading = Reading(sender, list(rooms), await _upload(sender))
        polls = [asyncio.create_task(listener.follow()) for listener in listeners]
        work = asyncio.create_task(sending.run())
        aside = asyncio.create_task(reading.run())
        try:
            started = time.perf_counter()
            await asyncio.sleep(quiet_seconds)
            course.begin("migration")
            await cluster.run_command(new, "migrate")
            for tree, name in ((new, "new"), (old, "old")):
                await _roll(cluster.slots, tree, name, outcome, say)
            course.begin(BETWEEN)
            await asyncio.sleep(quiet_seconds)
            outcome.seconds = time.perf_counter() - started
            aside.cancel()
            sending.stopping = True
            await work
            for listener, own_rooms in zip(listeners, rooms_of(listeners, rooms), strict=True):
                part = Ledger({room_id: ledger.acknowledged[room_id] for room_id in own_rooms})
                await catch_up([listener], polls, part)
                await check(listener.account, [listener], part)
        finally:
            for task in (*polls, work, aside):
                task.cancel()
            await asyncio.gather(*polls, work, aside, return_exceptions=True)
    return outcome


async def _roll(slots: Sequence[Slot], tree: Path, name: str, outcome: Outcome, say: Callable[[str], None]) -> None:
    for slot in sorted(slots, key=lambda slot: ORDER.index(slot.planned.service)):
        outcome.course.begin(slot.planned.service)
        outcome.rolled[slot.planned.service] += 1
        began = time.perf_counter()
        status = await slot.stop()
        ended = time.perf_counter()
        assert status == 0, f"{slot.planned.name} ended with {status}"
        await slot.start(tree)
        failed = len(outcome.course.failures)
        say(
            f"{slot.planned.name} is {name}: drained in {ended - began:.1f} s, ready after "
            f"{time.perf_counter() - ended:.1f} s; {failed} failures so far"
        )
        await asyncio.sleep(SETTLE_SECONDS)


async def _upload(account: Account) -> str:
    url = f"{account.base_url}/_matrix/media/v3/upload"
    headers = {"Authorization": f"Bearer {account.token}", "Content-Type": "image/png"}
    async with account.session.post(url, data=PICTURE, headers=headers) as response:
        uri: str = (await response.json())["content_uri"]
    return uri.removeprefix("mxc://")


async def main() -> None:
    """Print the figures; exit status 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", default="HEAD~1", help="the revision before")
    parser.add_argument("--new", default="HEAD")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sends-a-second", type=float, default=30)
    arguments = parser.parse_args()
    load = Load(sends_a_second=arguments.sends_a_second)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tr-")))
        old = await stack.enter_async_context(worktree(arguments.old, folder / "old"))
        new = await stack.enter_async_context(worktree(arguments.new, folder / "new"))
        cluster = await stack.enter_async_context(rolling_cluster(folder, COUNTS))
        print(f"on {cluster.broker.description}")
        outcome = await run(cluster, old, new, load=load, seed=arguments.seed)
    print("\n".join(outcome.lines()))
    if outcome.course.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    asyncio.run(main())
