"""The same DAG, delivered in any order with gaps and batches, ends the same. DESIGN section 13, 7."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from remote_room import CARLA, DORA, RemoteRoom, State, remote_room
from writer_world import ALICE, World, make_world

from matrixcore.events import Event
from tessera.commands import Unpark
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.records import OrderKey
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.storage.state_loading import find_places, load_state_at

MEMBERS = (ALICE, CARLA, DORA)
EXAMPLES = 30
PARTITIONS = 8
KINDS = ("topic", "name", "message", "levels", "profile", "custom")


# (kind, sender, how far back the prev events are, timestamp) of each event.
History = list[tuple[str, int, list[int], int]]
HISTORIES = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 2),
        st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True),
        st.integers(1, 20),
    ),
    min_size=2,
    max_size=12,
)


def make_events(room: RemoteRoom, history: History) -> list[Event]:
    """The events of a history, none of which takes anybody's right away."""
    line = [room.tip]
    events: list[Event] = []
    for number, (kind, who, back, ts) in enumerate(history):
        prev = list(dict.fromkeys(line[-min(step, len(line))] for step in back))
        sender = MEMBERS[who]
        more: dict[str, Any] = {"prev": prev, "sender": sender, "at_ms": 1_700_000_000_000 + ts}
        match kind:
            case "topic":
                event = room.topic(str(number), **more)
            case "name":
                event = room.make("m.room.name", {"name": str(number)}, state_key="", **more)
            case "message":
                event = room.message(str(number), **more)
            case "profile":
                content = {"membership": "join", "displayname": str(number)}
                event = room.make("m.room.member", content, state_key=sender, **more)
            case "levels":
                more["sender"] = ALICE
                users = {} if room.version == "12" else {ALICE: 100}
                levels = {"users": users, "events": {"m.room.topic": 0, "m.room.name": 0}, "users_default": number}
                event = room.make("m.room.power_levels", levels, state_key="", **more)
            case _:
                event = room.make("org.example", {"n": number}, state_key=str(number % 3), **{**more, "sender": ALICE})
        events.append(event)
        line.append(event.event_id)
    return events


def expected(room: RemoteRoom) -> tuple[State, set[str]]:
    """What the rules say of the whole DAG at once."""
    referenced = {prev for event in room.events.values() for prev in event.prev_events}
    ends = [event.event_id for event in room.events.values() if event.event_id not in referenced]
    return room.before(ends), set(ends)


async def deliver(room: RemoteRoom, events: list[Event], data: st.DataObject) -> None:
    """All events in a drawn order, in batches, in part as staged ancestors, some of them twice."""
    order = data.draw(st.permutations(events), label="order")
    while order:
        size = data.draw(st.integers(1, len(order)), label="batch")
        batch, order = order[:size], order[size:]
        match data.draw(st.sampled_from(("named", "named apart", "staged", "twice")), label="how"):
            case "named":
                await room.deliver(*batch)
            case "named apart":
                await asyncio.gather(*(room.deliver(event) for event in batch))
            case "staged":
                await room.put(*batch, state="staged")
            case _:
                ids = await room.put(*batch)
                await asyncio.gather(room.name(ids), room.name(ids[::-1]))
    await room.world.accepted(room.room_id, Unpark(), CARLA)


async def check(world: World, history: History, version: str, data: st.DataObject) -> None:
    room = await remote_room(world, version)
    await room.deliver(room.join(DORA))
    events = make_events(room, history)
    await deliver(room, events, data)
    state, ends = expected(room)
    assert await room.extremities() == ends
    assert await room.current() == state
    assert await room.inbox_states() == []
    database = world.shards.of_room(room.room_id)
    unseen = "SELECT count(*) FROM rooms.events WHERE room_id = $1 AND (anchor IS NULL OR rejected IS NOT NULL)"
    assert await database.fetchval(unseen, room.room_id) == 0
    async with database.reading() as tx:
        newest = await load_state_at(tx, room.room_id, OrderKey(1 << 40))
        places = await find_places(tx, room.room_id, list(room.events))
        for event in events:
            place = places[event.event_id]
            before = {**await load_state_at(tx, room.room_id, place.base), **place.delta}
            there = {key: event_id for key, event_id in before.items() if event_id is not None}
            assert there == room.before(event.prev_events)
    assert newest == state


@pytest.mark.timeout(300)
def test_the_same_events_in_any_order_end_the_same(postgres: EmbeddedPostgres) -> None:
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        opened = running_world(postgres)
        world = runner.run(opened.__aenter__())
        stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
        @given(history=HISTORIES, version=st.sampled_from(["1", "2", "10", "12"]), data=st.data())
        def law(history: History, version: str, data: st.DataObject) -> None:
            runner.run(check(world, history, version, data))

        law()


@contextlib.asynccontextmanager
async def running_world(postgres: EmbeddedPostgres) -> AsyncIterator[World]:
    """A world with a writer, in a database of its own."""
    connection = await Database.connect(postgres.dsn("postgres"))
    await connection.execute("CREATE DATABASE receiving_law TEMPLATE template_tessera")
    await connection.close()
    database = await Database.connect(postgres.dsn("receiving_law"))
    shards = RoomShards({"main": database}, dict.fromkeys(range(PARTITIONS), "main"), PARTITIONS)
    async with make_world(shards) as world, world.writer():
        yield world
    await database.close()
