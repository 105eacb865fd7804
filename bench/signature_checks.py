"""What it takes to check the signatures of many events, and how long the event loop stands still meanwhile.

`python -m bench.signature_checks`: events of 1 KB from 50 servers, checked in place, in threads and in processes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from matrixcore.event_building import build_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from tessera.federation.signature_checks import SignatureChecker, SignedEvent, check_here

RULES = ROOM_VERSIONS["11"]
PARENTS = [EventId("$" + "a" * 43)] * 2
SIZES = (50, 1_000, 10_000)


def make_events(count: int) -> list[SignedEvent]:
    """Joins, as the state of a large room has them."""
    made: list[SignedEvent] = []
    keys = [SigningKey("1", bytes([number]) * 32) for number in range(50)]
    for number in range(count):
        key, server = keys[number % 50], ServerName(f"s{number % 50}.example")
        user = UserId(f"@user{number}:{server}")
        event = build_event(
            rules=RULES,
            room_id=RoomId("!room:s0.example"),
            sender=user,
            event_type="m.room.member",
            state_key=user,
            content={
                "membership": "join",
                "displayname": f"User {number}",
                "avatar_url": f"mxc://{server}/" + "x" * 24,
            },
            origin_server_ts=1,
            depth=number,
            prev_events=PARENTS,
            auth_events=PARENTS,
            server_name=server,
            signing_key=key,
        )
        made.append(SignedEvent(event, {server: {key.key_id: key.public_key}}))
    return made


async def measure(name: str, events: Sequence[SignedEvent], check: Callable[[], Awaitable[list[str | None]]]) -> None:
    """Print one line."""
    longest = 0.0
    done = asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not done.is_set():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before - 0.001)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    begun, cpu = time.perf_counter(), time.process_time()
    assert not any(await check())
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    await asyncio.sleep(0.005)
    done.set()
    await watching
    each = seconds / len(events) * 1e6
    print(
        f"{len(events):6} {name:12} {seconds * 1000:7.1f} ms, {each:5.0f} µs an event, "
        f"{cpu / len(events) * 1e6:4.0f} µs of CPU in this process, loop stood {longest * 1000:6.1f} ms"
    )


async def run() -> None:
    """Print a line for each size and way."""
    checker = SignatureChecker()
    await checker.check_in_processes(make_events(10))  # the processes are started
    for count in SIZES:
        events = make_events(count)

        async def here(events: Sequence[SignedEvent] = events) -> list[str | None]:
            return check_here(events)

        await measure("in place", events, here)
        await measure("threads", events, partial(checker.check_in_threads, events))
        await measure("processes", events, partial(checker.check_in_processes, events))
    checker.close()


if __name__ == "__main__":
    asyncio.run(run())
