"""Resolving a fork of a room with 20,000 state events, of which a few, a thousand or all are in conflict.

`python -m bench.state_resolution [--events 20000]`: the states and the events are in memory, as they are once a writer
has loaded them; it runs in a thread, as in a writer, while an event loop notes how long it was kept waiting. What the
writer adds (loading, telling states by their differences) is in tests/integration/writer/test_large_forks.py.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from functools import partial

from matrixcore.events import Event
from matrixcore.identifiers import EventId, StateKey, UserId
from matrixcore.state_res import AuthEdges, Resolution
from tessera.garbage_collector import settle_garbage_collector
from tests.fixtures.foreign_room import ForeignRoom

BEAT_SECONDS = 0.001
State = dict[StateKey, EventId]


def make_room(version: str, members: int) -> ForeignRoom:
    """A room with so many members beside its creator."""
    room = ForeignRoom(version)
    for number in range(members):
        user = UserId(f"@member{number}:{room.server}")
        room.add(room.make("m.room.member", {"membership": "join"}, sender=user, state_key=user))
    return room


def fork(room: ForeignRoom, changed: int) -> list[State]:
    """Two states above the room: in each the same members have other names, and each has a topic of its own."""
    common, tip = dict(room.state), room.tip
    states: list[State] = []
    for side in range(2):
        room.state, room.tip = dict(common), tip
        for number in range(changed):
            user = UserId(f"@member{number}:{room.server}")
            content = {"membership": "join", "displayname": f"{side}"}
            room.add(room.make("m.room.member", content, sender=user, state_key=user))
        room.add(room.make("m.room.topic", {"topic": f"{side}"}, sender=room.creator, state_key=""))
        states.append({key: event.event_id for key, event in room.state.items()})
    room.state, room.tip = common, tip
    return states


def resolve(room: ForeignRoom, states: Sequence[State]) -> tuple[int, State, float]:
    """(how many keys were in conflict, the resolved state, CPU seconds of this thread)."""
    began = time.thread_time()
    agreed = {key: event_id for key, event_id in states[0].items() if states[1].get(key) == event_id}
    sides = [{key: one for key, one in state.items() if key not in agreed} for state in states]
    resolution = Resolution(room.rules, sides, agreed=agreed)
    while edges := resolution.missing_edges():
        resolution.add_edges([AuthEdges.of(room.events[event_id]) for event_id in edges])
    while events := resolution.missing_events():
        resolution.add_events(_events(room, events))
    return len(sides[0]), dict(resolution.resolve()), time.thread_time() - began


def _events(room: ForeignRoom, event_ids: Sequence[EventId]) -> list[Event]:
    return [room.events[event_id] for event_id in event_ids]


async def measure(room: ForeignRoom, changed: int) -> None:
    """Resolve one fork beside a loop that has something to do each millisecond, and print."""
    states = await asyncio.to_thread(fork, room, changed)
    waits: list[float] = []

    async def beat() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(BEAT_SECONDS)
            waits.append(time.perf_counter() - before - BEAT_SECONDS)

    beating = asyncio.create_task(beat())
    began = time.perf_counter()
    conflicted, resolved, cpu = await asyncio.to_thread(partial(resolve, room, states))
    took = time.perf_counter() - began
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    assert resolved.keys() == states[0].keys()
    print(
        f"version {room.version}: {len(room.state)} state events, {conflicted} keys in conflict: {took * 1e3:.0f} ms,"
        f" {cpu * 1e3:.0f} ms of CPU; the loop waited for {max(waits, default=0.0) * 1e3:.0f} ms at most",
        flush=True,
    )


async def run(count: int, versions: Sequence[str]) -> None:
    """All versions and forks."""
    for version in versions:
        room = await asyncio.to_thread(make_room, version, count)
        settle_garbage_collector()  # as every service does
        for changed in (1, count // 20, count):
            await measure(room, changed)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("versions", nargs="*", default=["11", "12"])
    arguments = parser.parse_args()
    asyncio.run(run(arguments.events, arguments.versions))


if __name__ == "__main__":
    main()
