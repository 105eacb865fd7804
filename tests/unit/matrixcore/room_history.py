"""A room whose history forks as a test wants it, without signatures or hashes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matrixcore.auth_events import CREATE, auth_state_keys
from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, StateKey, UserId
from matrixcore.room_versions import ROOM_VERSIONS

ALICE, BOB, CHARLIE, DAN = (UserId(f"@{name}:hs") for name in ("alice", "bob", "charlie", "dan"))

State = dict[StateKey, EventId]


class RoomHistory:
    """Makes events on given states and keeps them all; names become event IDs, `$name`."""

    def __init__(self, version: str = "10") -> None:
        self.rules = ROOM_VERSIONS[version]
        self.events: dict[EventId, Event] = {}
        self.room_id = RoomId("!create" if self.rules.room_id_is_create_event_id else "!room:hs")
        self._clock = 0

    def add(
        self,
        name: str,
        state: Mapping[StateKey, EventId],
        sender: UserId,
        event_type: str,
        state_key: str = "",
        content: Mapping[str, Any] | None = None,
        *,
        at: int | None = None,
        auth: list[str] | None = None,
        depth: int | None = None,
    ) -> State:
        """Make a state event on `state` and give the state after it. `auth` names other auth events than those due."""
        content = content or {}
        event_id = EventId(f"${name}")
        keys = auth_state_keys(event_type, state_key, sender, content, self.rules)
        due = [state[key] for key in keys if key in state]
        self._clock += 1
        self.events[event_id] = Event(
            event_id=event_id,
            room_id=self.room_id,
            type=event_type,
            state_key=state_key,
            sender=sender,
            content=content,
            origin_server_ts=self._clock if at is None else at,
            depth=self._clock if depth is None else depth,
            prev_events=() if event_type == "m.room.create" else (EventId("$before"),),
            redacts=None,
            auth_events=tuple(due if auth is None else [EventId(f"${other}") for other in auth]),
            fields={},
            pdu=b"",
            rules=self.rules,
        )
        return {**state, (event_type, state_key): event_id}

    def create(self, sender: UserId = ALICE, **content: Any) -> State:
        """A room with its creator joined."""
        state = self.add("create", {}, sender, "m.room.create", "", {"creator": sender, **content})
        assert CREATE in state
        event_id = EventId("$creator_join")
        state = self.add("creator_join", state, sender, "m.room.member", sender, {"membership": "join"})
        # The creator's join is allowed because it follows the create event directly.
        old = self.events[event_id]
        self.events[event_id] = replace(old, prev_events=(EventId("$create"),))
        return state

    def member(self, name: str, state: State, sender: UserId, target: UserId, membership: str, **more: Any) -> State:
        return self.add(name, state, sender, "m.room.member", target, {"membership": membership}, **more)

    def levels(self, name: str, state: State, sender: UserId, users: Mapping[str, int], **more: Any) -> State:
        return self.add(name, state, sender, "m.room.power_levels", "", {"users": dict(users)}, **more)

    def join_rule(self, name: str, state: State, sender: UserId, rule: str, **more: Any) -> State:
        return self.add(name, state, sender, "m.room.join_rules", "", {"join_rule": rule}, **more)

    def topic(self, name: str, state: State, sender: UserId, **more: Any) -> State:
        return self.add(name, state, sender, "m.room.topic", "", {"topic": name}, **more)

    def public_room(self, *members: UserId, levels: Mapping[str, int] | None = None) -> State:
        """Alice's room with power levels, open to all, with these members joined."""
        state = self.create()
        default = {} if self.rules.privileged_creators else {ALICE: 100}
        state = self.levels("levels", state, ALICE, default if levels is None else levels)
        state = self.join_rule("public", state, ALICE, "public")
        for member in members:
            state = self.member(f"join_{member}", state, member, member, "join")
        return state
