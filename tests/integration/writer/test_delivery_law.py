"""The law of receiving over HTTP: a DAG sent in any order with any gaps ends the same. DESIGN section 13, 7."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peer_world import PeerWorld, peer_world, resigned
from remote_room import DORA, RemoteRoom, remote_room
from resident_server import Resident
from test_receiving_law import HISTORIES, make_events
from writer_world import KEY, SERVER, make_world

from matrixcore.events import Event
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tests.fixtures.room_history import History, expected_end

EXAMPLES = 15
# A history that does not settle is waited for; shrinking it would take hours.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
PARTITIONS = 8


async def send(peer: PeerWorld, room: RemoteRoom, events: list[Event], data: st.DataObject) -> None:
    """Some of the events, in a drawn order and in transactions; what was left out is there to be asked for."""
    newest = {event.event_id for event in events} - {prev for event in events for prev in event.prev_events}
    kept = [event for event in events if event.event_id in newest or data.draw(st.booleans(), label="sent")]
    order = data.draw(st.permutations(kept), label="order")
    while order:
        size = data.draw(st.integers(1, len(order)), label="transaction")
        batch, order = order[:size], order[size:]
        # Drawn before anything is begun: a draw may end the example.
        twice = [batch, batch[::-1]] if data.draw(st.booleans(), label="twice") else [batch]
        for results in await asyncio.gather(*(peer.send(*events) for events in twice)):
            assert all(result == {} for result in results.values())


async def check(peer: PeerWorld, history: History, version: str, data: st.DataObject) -> None:
    room = await remote_room(peer.world, version)
    await room.deliver(room.join(DORA))
    Resident(peer, room, history=data.draw(st.integers(20, 40), label="events of an answer"))
    # Each is signed by its sender's server, some of them by this one.
    events = [resigned(event, SERVER, KEY) for event in make_events(room, history)]
    room.events.update((event.event_id, event) for event in events)
    await send(peer, room, events, data)
    await peer.settled(room, *events)
    state, ends = expected_end(room)
    assert await room.current() == state
    assert await room.extremities() == ends


@pytest.mark.timeout(300)
def test_the_same_events_sent_with_gaps_end_the_same(postgres: EmbeddedPostgres) -> None:
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        opened = running_peer(postgres)
        peer = runner.run(opened.__aenter__())
        stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            phases=PHASES,
        )
        @given(history=HISTORIES, version=st.sampled_from(["1", "2", "10", "12"]), data=st.data())
        def law(history: History, version: str, data: st.DataObject) -> None:
            runner.run(check(peer, history, version, data))

        law()


@contextlib.asynccontextmanager
async def running_peer(postgres: EmbeddedPostgres) -> AsyncIterator[PeerWorld]:
    """A federation_in with a writer, in a database of its own."""
    connection = await Database.connect(postgres.dsn("postgres"))
    await connection.execute("CREATE DATABASE delivery_law TEMPLATE template_tessera")
    await connection.close()
    database = await Database.connect(postgres.dsn("delivery_law"))
    shards = RoomShards({"main": database}, dict.fromkeys(range(PARTITIONS), "main"), PARTITIONS)
    async with make_world(shards) as world, world.writer(), peer_world(world, database) as peer:
        yield peer
    await database.close()
