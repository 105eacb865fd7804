"""The same DAG, delivered in any order with gaps and batches, ends the same. DESIGN section 13, 7."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from remote_room import CARLA, DORA, RemoteRoom, remote_room
from writer_world import ALICE, World, make_world

from matrixcore.events import Event
from tessera.commands import Unpark
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.records import OrderKey
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.storage.state_loading import find_places, load_state_at
from tests.fixtures.room_history import KINDS, History, add_history, expected_end

MEMBERS = (ALICE, CARLA, DORA)
EXAMPLES = 30
PARTITIONS = 8
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
    """The events of a history, by Alice and two people of the other server."""
    return add_history(room, history, MEMBERS)


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
    state, ends = expected_end(room)
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
