"""A small room, to ask the authorisation rules about."""

from typing import Any

from matrixcore.auth_rules import check_auth
from matrixcore.event_building import build_event
from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, ServerName, StateKey, UserId
from matrixcore.room_versions import ROOM_VERSIONS, EventIdFormat
from matrixcore.signing import SigningKey
from matrixcore.verdicts import Accepted

CREATOR = "@creator:one"
ALICE = "@alice:one"
BOB = "@bob:two"
EVE = "@eve:two"

KEY = SigningKey("1", b"k" * 32)
ALL = tuple(ROOM_VERSIONS)


def since(version: int) -> tuple[str, ...]:
    return tuple(name for name in ALL if int(name) >= version)


def until(version: int) -> tuple[str, ...]:
    return tuple(name for name in ALL if int(name) <= version)


class AuthRoom:
    """The state of a room by CREATOR, who has joined; no power levels, no join rules."""

    def __init__(self, version: str, **create_content: Any) -> None:
        self.rules = ROOM_VERSIONS[version]
        self.room_id: RoomId | None = None if self.rules.room_id_is_create_event_id else RoomId("!room:one")
        self.state: dict[StateKey, Event] = {}
        self._count = 0
        content: dict[str, Any] = {"room_version": version, **create_content}
        if not self.rules.implicit_room_creator:
            content.setdefault("creator", CREATOR)
        self.create = self.put("m.room.create", "", content, prev_events=[])
        self.room_id = self.create.room_id
        self.member(CREATOR, "join")

    def event(
        self,
        event_type: str,
        state_key: str | None,
        content: dict[str, Any],
        sender: str = CREATOR,
        *,
        prev_events: list[str] | None = None,
        redacts: str | None = None,
        event_id: str | None = None,
    ) -> Event:
        """An event of this room; neither checked nor added."""
        self._count += 1
        prev = [EventId(prev_id) for prev_id in (["$prev:one"] if prev_events is None else prev_events)]
        is_old = self.rules.event_id_format is EventIdFormat.GIVEN
        server = ServerName(sender.partition(":")[2])
        return build_event(
            rules=self.rules,
            room_id=self.room_id,
            sender=UserId(sender),
            event_type=event_type,
            state_key=state_key,
            content=content,
            origin_server_ts=self._count,
            depth=self._count,
            prev_events=prev,
            auth_events=[],
            server_name=server,
            signing_key=KEY,
            redacts=None if redacts is None else EventId(redacts),
            event_id=EventId(event_id or f"${self._count}:{server}") if is_old else None,
            reference_hashes=dict.fromkeys(prev, "aGFzaA") if is_old else None,
        )

    def put(
        self, event_type: str, state_key: str, content: dict[str, Any], sender: str = CREATOR, **more: Any
    ) -> Event:
        """An event that is part of the state, whatever the rules say."""
        event = self.event(event_type, state_key, content, sender, **more)
        self.state[event.state_tuple] = event
        return event

    def member(self, user_id: str, membership: str, **content: Any) -> Event:
        return self.put("m.room.member", user_id, {"membership": membership, **content}, user_id)

    def power(self, **content: Any) -> Event:
        """Power levels; the creator gets 100 where creators may be listed."""
        users = dict(content.pop("users", {}))
        if not self.rules.privileged_creators:
            users.setdefault(CREATOR, 100)
        return self.put("m.room.power_levels", "", {"users": users, **content})

    def join_rule(self, rule: str) -> Event:
        return self.put("m.room.join_rules", "", {"join_rule": rule})

    def allows(self, event: Event) -> bool:
        return isinstance(check_auth(event, self.state), Accepted)
