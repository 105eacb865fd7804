"""A room as another server makes it, and what the writer here has of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from writer_world import BOB, NOW_MS, World

from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.commands import Outcome, ReceivePdus
from tessera.storage import inbox
from tessera.storage.inbox import NewInboxRow
from tessera.storage.state_loading import load_current_state
from tests.fixtures.room_history import CARLA, DORA, THERE, THERE_KEY, RoomHistory, State

__all__ = ["CARLA", "DORA", "THERE", "THERE_KEY", "RemoteRoom", "State", "remote_room"]


@dataclass(slots=True, kw_only=True)
class RemoteRoom(RoomHistory):
    """A room of both servers."""

    world: World

    async def read(self) -> "RemoteRoom":
        """Take in the events that the writer has placed; the room must be linear."""
        rules = ROOM_VERSIONS[self.version]
        query = "SELECT event_id, pdu FROM rooms.events WHERE room_id = $1 AND anchor IS NOT NULL ORDER BY anchor"
        state: State = {}
        for event_id, pdu in await self.world.shards.of_room(self.room_id).fetch(query, self.room_id):
            event = load_event(pdu, event_id, rules, room_id=self.room_id)
            state = self._remember(event, state)
        return self

    async def take_in(self, event_id: EventId) -> Event:
        """Take in an event of this server."""
        query = "SELECT pdu FROM rooms.events WHERE room_id = $1 AND event_id = $2"
        pdu = await self.world.shards.of_room(self.room_id).fetchval(query, self.room_id, event_id)
        event = load_event(pdu, event_id, ROOM_VERSIONS[self.version], room_id=self.room_id)
        self._remember(event, self.before(event.prev_events))
        return event

    async def deliver(self, *events: Event, outlier: bool = False) -> Outcome:
        """Put events into the inbox and name them in one command."""
        return await self.name(await self.put(*events, outlier=outlier))

    async def put(
        self,
        *events: Event,
        state: str = "new",
        outlier: bool = False,
        told: Sequence[EventId] | None = None,
        below: int | None = None,
    ) -> list[int]:
        """Put events into the inbox.

        Args:
            told: the state before the events, which are from behind a gap.
            below: the anchor under which they are backfilled.
        """
        partition = self.world.shards.partition_of(self.room_id)
        before = None if told is None else orjson.dumps(list(told))
        more = (NOW_MS, state, outlier, before, below)
        rows = [NewInboxRow(partition, self.room_id, THERE, event.event_id, event.pdu, *more) for event in events]
        async with self.world.shards.of_room(self.room_id).transaction() as tx:
            return await inbox.add(tx, rows)

    async def name(self, inbox_ids: Sequence[int]) -> Outcome:
        """The command about inbox rows."""
        return await self.world.accepted(self.room_id, ReceivePdus(tuple(inbox_ids)), BOB)

    async def current(self) -> State:
        """The current state that is stored."""
        async with self.world.shards.of_room(self.room_id).reading() as tx:
            return await load_current_state(tx, self.room_id)

    async def extremities(self) -> set[str]:
        """The forward extremities that are stored."""
        query = "SELECT forward_extremities FROM rooms.rooms WHERE room_id = $1"
        return set(await self.world.shards.of_room(self.room_id).fetchval(query, self.room_id))

    async def inbox_states(self) -> list[str]:
        """The states of the rows that are left in the inbox."""
        query = "SELECT state FROM rooms.inbox WHERE room_id = $1 ORDER BY inbox_id"
        return [row[0] for row in await self.world.shards.of_room(self.room_id).fetch(query, self.room_id)]

    async def row(self, event: Event) -> Any:
        """The stored row of an event."""
        query = "SELECT * FROM rooms.events WHERE room_id = $1 AND event_id = $2"
        return await self.world.shards.of_room(self.room_id).fetchrow(query, self.room_id, event.event_id)


async def remote_room(world: World, version: str = "11") -> RemoteRoom:
    """A room of Alice's that Carla, of the other server, has joined; anybody may change the topic."""
    room_id = await world.new_room(version)
    room = await RemoteRoom(room_id, version, world.ids, world=world).read()
    await room.deliver(room.join(CARLA))
    return room
