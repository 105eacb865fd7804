"""Forks of a room of 20,000: soon resolved, and nobody else waits. DESIGN section 2, invariant 10."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from remote_room import THERE, RemoteRoom, remote_room
from writer_world import ALICE, World, message

from matrixcore.events import Event
from matrixcore.identifiers import UserId
from matrixcore.state_res import AuthEdges, Resolution
from services.rooms import room_past

MEMBERS = 20_000

_EVENTS = """
INSERT INTO rooms.events (room_id, event_id, type, state_key, sender, membership, depth, origin_server_ts, received_ms,
                          outlier, pdu)
SELECT $1, event_id, 'm.room.member', user_id, user_id, 'join', 1, 1, 1, true, pdu
FROM unnest($2::text[], $3::text[], $4::bytea[]) AS i (event_id, user_id, pdu)
"""
_STATE = """
WITH members AS (SELECT * FROM unnest($2::text[], $3::text[]) AS i (event_id, user_id)), history AS (
    INSERT INTO rooms.state_history SELECT $1, 'm.room.member', user_id, $4, 0, event_id, 'join' FROM members
)
INSERT INTO rooms.current_state SELECT $1, 'm.room.member', user_id, event_id, $4, 0, 'join' FROM members
"""


async def add_members(room: RemoteRoom, count: int) -> list[UserId]:
    """Members of the other server, as they are after a join through it: their events are outliers."""
    tip = room.tip
    state = room.after[tip]
    keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", "")]
    cited = [state[key] for key in keys if key in state]
    users = [UserId(f"@user{number}:{THERE}") for number in range(count)]
    events: list[Event] = []
    for user in users:
        event = room.make("m.room.member", {"membership": "join"}, sender=user, state_key=user, prev=[tip], auth=cited)
        events.append(event)
        del room.after[event.event_id]
    for event in events:
        state[event.state_tuple] = event.event_id
    room.tip = tip
    database = room.world.shards.of_room(room.room_id)
    ids, pdus = [event.event_id for event in events], [event.pdu for event in events]
    async with database.transaction() as tx:
        position = await tx.fetchval("SELECT last_position FROM rooms.rooms WHERE room_id = $1", room.room_id)
        await tx.execute(_EVENTS, room.room_id, ids, users, pdus)
        await tx.execute(_STATE, room.room_id, ids, users, position - 1)  # before the newest event
        await tx.execute(
            "UPDATE rooms.rooms SET joined_count = joined_count + $2 WHERE room_id = $1", room.room_id, count
        )
        await tx.execute(
            "UPDATE rooms.room_servers SET joined_count = joined_count + $2 WHERE room_id = $1", room.room_id, count
        )
    return users


@dataclass(slots=True)
class Watch:
    """How long the loop stood still at most."""

    longest: float = 0.0
    steps: list[tuple[str, float, float]] = field(default_factory=list)

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Measure a step: its time, and the longest block of the loop in it."""
        self.longest = 0.0
        beating = asyncio.create_task(self._beat())
        started = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - started
            await asyncio.sleep(0)
            beating.cancel()
            self.steps.append((name, took, self.longest))

    async def _beat(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before - 0.001)


class CountedResolution(Resolution):
    """Counts the resolutions that are made, and what is loaded for them."""

    made = 0
    edges = 0

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        CountedResolution.made += 1

    def add_edges(self, edges: Iterable[AuthEdges]) -> None:
        edges = list(edges)
        CountedResolution.edges += len(edges)
        super().add_edges(edges)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountedResolution]:
    monkeypatch.setattr(room_past, "Resolution", CountedResolution)
    CountedResolution.made = CountedResolution.edges = 0
    return CountedResolution


@pytest.mark.timeout(300)
async def test_a_fork_of_a_large_room_costs_what_changed(world: World, counted: type[CountedResolution]) -> None:
    watch = Watch()
    async with world.writer():
        room = await remote_room(world)
        users = await add_members(room, MEMBERS)
    async with world.writer() as writer:
        root = room.tip
        left = room.topic("left", prev=[root], sender=users[5])
        right = room.topic("right", prev=[root], sender=users[19_000])
        joined = room.join(UserId(f"@late:{THERE}"), prev=[left.event_id])
        out = {"membership": "ban"}
        ban = room.make("m.room.member", out, sender=ALICE, state_key=users[5], prev=[right.event_id])
        said = [room.message(f"{n}", prev=[joined.event_id], sender=users[7]) for n in range(3)]
        said += [room.message("there", prev=[ban.event_id], sender=users[8])]
        gc.collect()
        gc.freeze()  # what the test holds; services do the same when they have started
        steps: dict[str, tuple[int, int]] = {}
        for name, events in (
            ("linear", [left]),
            ("fork", [right]),
            ("join on one branch", [joined]),
            ("ban on the other", [ban]),
            ("message", said[:1]),
            ("messages on both", said[1:]),
        ):
            inbox_ids = await room.put(*events)
            before = counted.made, counted.edges
            async with watch.step(name):
                await room.name(inbox_ids)
            steps[name] = (counted.made - before[0], counted.edges - before[1])
        async with watch.step("merge"):
            await world.accepted(room.room_id, message("merge"))
        gc.unfreeze()
        for name, took, blocked in watch.steps:
            print(f"{name}: {took * 1000:.0f} ms, loop blocked for {blocked * 1000:.0f} ms at most")
        # A fork loads the events in which its branches differ, and their chains: what they agree on is not walked.
        assert steps["linear"] == (0, 0)
        forked = (steps["fork"], steps["join on one branch"], steps["ban on the other"])
        assert all(made == 1 and edges < 100 for made, edges in forked)
        # Messages change no state: what the branches resolve to is known.
        assert steps["message"] == steps["messages on both"] == (0, 0)
        # A second and 50 ms on a quiet machine (docs/benchmarks.md); these are bounds for a busy one.
        assert max(took for _, took, _ in watch.steps) < 5
        assert max(blocked for _, _, blocked in watch.steps) < 0.5
        (hot,) = (one for one in (part._rooms.find(room.room_id) for part in writer.writers) if one is not None)
        assert 0 < hot.memory < 1 << 20
        current = await room.current()
        assert len(current) == MEMBERS + 7
        assert current["m.room.member", users[5]] == ban.event_id
        assert current["m.room.topic", ""] == right.event_id
