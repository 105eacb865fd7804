"""Events on any older event of a room, as another server might send them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matrixcore.auth_events import auth_state_keys
from matrixcore.event_building import build_event
from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, RoomId, ServerName, StateKey, UserId
from matrixcore.room_versions import RoomVersionRules
from matrixcore.signing import SigningKey
from matrixcore.state_res import resolve_state
from tessera.storage.database import Database

_EVENTS = """
SELECT event_id, pdu, rejected IS NOT NULL FROM rooms.events WHERE room_id = $1 AND NOT outlier ORDER BY depth
"""

State = dict[StateKey, EventId]


@dataclass(slots=True)
class Dag:
    """All events of a room with the state after each, by an implementation of the rules that knows them all."""

    room_id: RoomId
    rules: RoomVersionRules
    events: dict[EventId, Event] = field(default_factory=dict)
    after: dict[EventId, State] = field(default_factory=dict)

    async def read(self, database: Database) -> "Dag":
        """Take in what is stored."""
        for event_id, pdu, rejected in await database.fetch(_EVENTS, self.room_id):
            event = load_event(pdu, event_id, self.rules, room_id=self.room_id)
            state = self.before(event.prev_events)
            if event.state_key is not None and not rejected:
                state[event.state_tuple] = event_id
            self.events[event_id], self.after[event_id] = event, state
        return self

    def before(self, prev_events: Sequence[EventId]) -> State:
        """The state before an event with these prev events."""
        if not prev_events:
            return {}
        return dict(resolve_state(self.rules, [self.after[event_id] for event_id in prev_events], self.events))

    def joined(self, event_id: EventId) -> list[UserId]:
        """Who is joined after an event, its creator first."""
        members = [self.events[one] for key, one in self.after[event_id].items() if key[0] == "m.room.member"]
        return [UserId(event.state_key or "") for event in members if event.membership == "join"]

    def make(
        self,
        prev_event: EventId,
        sender: UserId,
        event_type: str,
        content: Mapping[str, Any],
        state_key: str | None,
        *,
        server: ServerName,
        key: SigningKey,
        at_ms: int,
    ) -> Event:
        """An event on top of an older one."""
        before = self.after[prev_event]
        keys = auth_state_keys(event_type, state_key, sender, content, self.rules)
        return build_event(
            rules=self.rules,
            room_id=self.room_id,
            sender=sender,
            event_type=event_type,
            state_key=state_key,
            content=content,
            origin_server_ts=at_ms,
            depth=self.events[prev_event].depth + 1,
            prev_events=[prev_event],
            auth_events=[before[key] for key in keys if key in before],
            server_name=server,
            signing_key=key,
        )
