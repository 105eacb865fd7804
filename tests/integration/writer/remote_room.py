"""A room as another server makes it: events on any prev events, with the state that resolves there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from writer_world import BOB, NOW_MS, World

from matrixcore.auth_events import auth_state_keys
from matrixcore.canonical_json import encode_canonical_json
from matrixcore.event_building import build_event
from matrixcore.event_hashes import compute_event_id, content_hash
from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, RoomId, ServerName, StateKey, UserId
from matrixcore.room_versions import ROOM_VERSIONS, EventIdFormat
from matrixcore.signing import SigningKey, encode_base64
from matrixcore.state_res import resolve_state
from services.rooms.hot_rooms import hash_of
from tessera.commands import Outcome, ReceivePdus
from tessera.storage import inbox
from tessera.storage.inbox import NewInboxRow
from tessera.storage.state_loading import load_current_state

THERE = ServerName("there.org")
THERE_KEY = SigningKey("1", b"\x02" * 32)
CARLA, DORA = (UserId(f"@{name}:{THERE}") for name in ("carla", "dora"))

State = dict[StateKey, EventId]


@dataclass(slots=True)
class RemoteRoom:
    """Every event of a room with the state after it, by an implementation of the rules that knows all of them."""

    world: World
    room_id: RoomId
    version: str
    events: dict[EventId, Event] = field(default_factory=dict)
    after: dict[EventId, State] = field(default_factory=dict)
    depths: dict[EventId, int] = field(default_factory=dict)
    tip: EventId = field(init=False)
    count: int = 0

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

    def make(
        self,
        event_type: str,
        content: Mapping[str, Any],
        *,
        sender: UserId = CARLA,
        state_key: str | None = None,
        prev: Sequence[EventId] = (),
        redacts: EventId | None = None,
        at_ms: int | None = None,
        auth: Sequence[EventId] | None = None,
    ) -> Event:
        """An event on top of others (of the last one, if none are named)."""
        rules = ROOM_VERSIONS[self.version]
        prev = list(prev) or [self.tip]
        before = self.before(prev)
        keys = auth_state_keys(event_type, state_key, sender, content, rules)
        auth_events = [before[key] for key in keys if key in before] if auth is None else list(auth)
        self.count += 1
        is_old = rules.event_id_format is EventIdFormat.GIVEN
        hashes = {ref: hash_of(self.events[ref]) for ref in (*prev, *auth_events)} if is_old else None
        event = build_event(
            rules=rules,
            room_id=self.room_id,
            sender=sender,
            event_type=event_type,
            state_key=state_key,
            content=content,
            origin_server_ts=NOW_MS + self.count if at_ms is None else at_ms,
            depth=1 + max(self.depths[event_id] for event_id in prev),
            prev_events=prev,
            auth_events=auth_events,
            server_name=THERE,
            signing_key=THERE_KEY,
            redacts=redacts,
            event_id=EventId(f"${self.world.ids.letters(18)}:{THERE}") if is_old else None,
            reference_hashes=hashes,
        )
        self._remember(event, before)
        return event

    def forge(
        self, event_type: str, content: Mapping[str, Any], *, state_key: str | None, prev: Sequence[EventId]
    ) -> Event:
        """An event that nobody checks: of a type, with a content and a state key that no server would make."""
        rules, tip = ROOM_VERSIONS[self.version], self.tip
        decent = self.make("m.room.message", {}, prev=prev)
        fields = {**decent.fields, "type": event_type, "content": content}
        if state_key is not None:
            fields["state_key"] = state_key
        fields["hashes"] = {"sha256": encode_base64(content_hash(fields, rules))}
        pdu = encode_canonical_json(fields, strict=False)
        self.tip = tip
        return load_event(pdu, compute_event_id(fields, rules), rules, room_id=self.room_id)

    def join(self, user_id: UserId, **more: Any) -> Event:
        """A user of the other server joins."""
        return self.make("m.room.member", {"membership": "join"}, sender=user_id, state_key=user_id, **more)

    def topic(self, text: str, **more: Any) -> Event:
        return self.make("m.room.topic", {"topic": text}, state_key="", **more)

    def message(self, text: str, **more: Any) -> Event:
        return self.make("m.room.message", {"msgtype": "m.text", "body": text}, **more)

    def before(self, prev: Sequence[EventId]) -> State:
        """The state before an event with these prev events."""
        return dict(resolve_state(ROOM_VERSIONS[self.version], [self.after[e] for e in prev], self.events))

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

    def _remember(self, event: Event, before: State) -> State:
        after = dict(before) if event.state_key is None else {**before, event.state_tuple: event.event_id}
        self.events[event.event_id], self.after[event.event_id] = event, after
        self.depths[event.event_id] = event.depth
        self.tip = event.event_id
        return after


async def remote_room(world: World, version: str = "11") -> RemoteRoom:
    """A room of Alice's that Carla, of the other server, has joined; anybody may change the topic."""
    room_id = await world.new_room(version)
    room = await RemoteRoom(world, room_id, version).read()
    await room.deliver(room.join(CARLA))
    return room
