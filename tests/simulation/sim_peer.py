"""Another server in the simulation: it sends some of a room's history in any order, and is asked for the rest.

What receives it is federation_in from the PDUs of a transaction on, to their names for the writers and the fetching of
what is missing; HTTP between servers and signatures are left out.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, cast

import orjson
from faulty_bus import Faults
from sim_process import ProcessDied

from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import RoomVersionRules
from services.federation_in.fetching import AncestorFetcher
from services.federation_in.naming import InboxNaming
from services.federation_in.receiving import PduReceiver
from tessera.federation.errors import PeerUnreachable
from tessera.federation.event_fetching import EventFetcher, ToldState
from tessera.federation.keyring import Keyring
from tessera.http.errors import Unavailable
from tessera.ids import IdSource
from tessera.service import Service, Surroundings
from tessera.storage.database import Database, DatabaseUnavailable
from tests.fixtures.room_history import CARLA, DORA, KINDS, THERE, RoomHistory, add_history

if TYPE_CHECKING:
    from sim_clients import Ledger
    from sim_cluster import SimCluster

VERSIONS = ("1", "2", "10", "12")
MAX_EVENTS = 10
MAX_BACK = 5
TRIES = 200
RETRY_SECONDS = 0.5
_PLACED = "SELECT event_id, pdu FROM rooms.events WHERE room_id = $1 AND anchor IS NOT NULL ORDER BY anchor"


class Peer:
    """The other server, with one room."""

    def __init__(self, faults: Faults, random: Random) -> None:
        self.version = random.choice(VERSIONS)
        self.faults = faults
        self.random = random
        self.room: RoomHistory | None = None
        self.sent: list[Event] = []

    @asynccontextmanager
    async def receiver(self, server_name: ServerName, around: Surroundings) -> AsyncIterator[Service]:
        """One process of this server that receives."""
        source = cast("EventFetcher", _Answers(self))
        fetcher = AncestorFetcher(server_name, around.shards, source, around.clock, around.ids.token(12))
        naming = InboxNaming(
            around.commands, around.fanout, around.shards, around.clock, around.ids, on_parked=fetcher.wake
        )
        receiver = PduReceiver(server_name, around.shards, cast("Keyring", _Trust()), around.clock)

        async def take(pdus: Sequence[object]) -> bool:
            try:
                received = await receiver.receive(THERE, pdus)
            except (DatabaseUnavailable, Unavailable):
                return False
            assert not any(received.results.values()), received.results
            await naming.name(received.names)
            return True

        await naming.start()
        try:
            background = (naming.sweep, fetcher.sweep, fetcher.renew, lambda: fetcher.run(naming))
            yield Service(state={"take": take}, background=background)
        finally:
            await naming.stop()

    async def enter(self, cluster: "SimCluster", database: Database, room_id: RoomId, ledger: "Ledger") -> None:
        """Two people of the other server join a room; faults are off."""
        self.room = RoomHistory(room_id, self.version, IdSource(self.random.randbytes))
        for event_id, pdu in await database.fetch(_PLACED, room_id):
            self.room.take(pdu, event_id)
        for user_id in (CARLA, DORA):
            self.sent.append(self.room.join(user_id))
            await self._send(cluster, self.sent[-1:], ledger)

    async def run(self, cluster: "SimCluster", maker: UserId, ledger: "Ledger") -> None:
        """Make a history on top of that, and send what has no successor and some of the others, in any order."""
        assert self.room is not None
        random = self.random
        history = [
            (random.choice(KINDS), random.randrange(3), _some_steps(random), random.randint(1, 20))
            for _ in range(random.randint(2, MAX_EVENTS))
        ]
        events = add_history(self.room, history, (maker, CARLA, DORA))
        cited = {prev for event in events for prev in event.prev_events}
        sent = [event for event in events if event.event_id not in cited or random.random() < 0.5]
        self.sent += sent
        random.shuffle(sent)
        while sent:
            size = random.randint(1, len(sent))
            batch, sent = sent[:size], sent[size:]
            await asyncio.sleep(random.choice((0, 0.02, 0.5, 4)))
            twice = [batch, batch[::-1]] if random.random() < 0.3 else [batch]
            await asyncio.gather(*(self._send(cluster, one, ledger) for one in twice))

    async def _send(self, cluster: "SimCluster", events: Sequence[Event], ledger: "Ledger") -> None:
        """One transaction, again and again until it is answered."""
        pdus = [orjson.loads(event.pdu) for event in events]
        for _ in range(TRIES):
            try:
                if await cluster.hand_over(pdus):
                    return
            except ProcessDied:
                pass
            await asyncio.sleep(RETRY_SECONDS)
        ledger.denied.append(f"a transaction of {len(events)} PDUs was never taken")


def _some_steps(random: Random) -> list[int]:
    return random.sample(range(1, MAX_BACK + 1), random.randint(1, 3))


class _Trust:
    """Everybody is who they say they are."""

    async def verify_events(self, events: Sequence[Event], _rules: RoomVersionRules) -> list[None]:
        return [None] * len(events)


class _Answers:
    """What the other server says when it is asked, if it says anything; in place of `EventFetcher`."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def _asked(self) -> RoomHistory:
        faults = self._peer.faults
        await asyncio.sleep(faults.delay())
        if faults.happens(0.2) or self._peer.room is None:
            raise PeerUnreachable("no answer")
        return self._peer.room

    async def missing_events(
        self,
        _server: ServerName,
        _room_id: RoomId,
        _rules: RoomVersionRules,
        *,
        latest: Sequence[EventId],
        earliest: Sequence[EventId],
        limit: int,
    ) -> list[Event]:
        room = await self._asked()
        seen = {*earliest, *latest}
        waiting = deque(prev for event_id in latest for prev in room.events[event_id].prev_events)
        found: dict[EventId, Event] = {}
        limit = min(limit, self._peer.random.randint(1, MAX_EVENTS))
        while waiting and len(found) < limit:
            event_id = waiting.popleft()
            if event_id not in seen:
                seen.add(event_id)
                found[event_id] = room.events[event_id]
                waiting.extend(found[event_id].prev_events)
        return sorted(found.values(), key=lambda event: event.depth)

    async def events(
        self,
        _servers: Sequence[ServerName],
        _room_id: RoomId,
        _rules: RoomVersionRules,
        event_ids: Collection[EventId],
    ) -> dict[EventId, Event]:
        room = await self._asked()
        return {event_id: room.events[event_id] for event_id in event_ids if event_id in room.events}

    async def auth_chain(
        self, _server: ServerName, _room_id: RoomId, _rules: RoomVersionRules, event_id: EventId
    ) -> list[Event]:
        room = await self._asked()
        return [room.events[one] for one in _chain(room, room.events[event_id].auth_events)]

    async def state_ids(self, _server: ServerName, _room_id: RoomId, event_id: EventId) -> ToldState:
        room = await self._asked()
        state = tuple(room.before(room.events[event_id].prev_events).values())
        return ToldState(state, tuple(_chain(room, state)))

    async def state(self, *_: Any) -> list[Event]:
        raise AssertionError("the room is too small for that")


def _chain(room: RoomHistory, event_ids: Collection[EventId]) -> list[EventId]:
    """These events and all that they are authorised by."""
    found: dict[EventId, None] = {}
    waiting = list(event_ids)
    while waiting:
        event_id = waiting.pop()
        if event_id not in found:
            found[event_id] = None
            waiting += room.events[event_id].auth_events
    return list(found)
