"""Who may do what: a view on the power levels of a room.

Spec: C-S API §m.room.power_levels; Room Versions, the fragments on strings and floats as levels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matrixcore.events import Event
from matrixcore.identifiers import InvalidIdentifier, UserId, parse_user_id
from matrixcore.room_versions import RoomVersionRules

# Stands for the infinite power of the creators of version 12: above whatever JSON can carry there.
CREATOR_POWER = 2**62

DEFAULT_LEVELS: Mapping[str, int] = {
    "users_default": 0,
    "events_default": 0,
    "state_default": 50,
    "ban": 50,
    "redact": 50,
    "kick": 50,
    "invite": 0,
}
_NOTIFICATION_DEFAULT = 50

_NUMBER_IN_STRING = re.compile(r"\s*[+-]?[0-9]+\s*")
_EMPTY: Mapping[str, Any] = {}


def parse_level(value: object, rules: RoomVersionRules) -> int | None:
    """A power level as the room version writes it, or None if it is none.

    From version 10 on only integers count; before, strings that hold an integer too, and
    floats, which are truncated. true and false are no numbers.
    """
    if type(value) is int:
        return value
    if rules.integer_power_levels:
        return None
    try:
        if isinstance(value, str) and _NUMBER_IN_STRING.fullmatch(value):
            return int(value)
        if isinstance(value, float):
            return int(value)
    except (ValueError, OverflowError):  # thousands of digits, infinite, no number
        pass
    return None


def creators_of(create: Event) -> frozenset[UserId]:
    """The creators of a room: one user, or in version 12 also the additional ones."""
    if not create.rules.implicit_room_creator:
        creator = create.content.get("creator")
        return frozenset((UserId(creator),)) if isinstance(creator, str) else frozenset()
    creators = {create.sender}
    if create.rules.privileged_creators:
        creators.update(_parsed_user_ids(create.content.get("additional_creators")))
    return frozenset(creators)


def _parsed_user_ids(value: object) -> list[UserId]:
    user_ids: list[UserId] = []
    for item in value if isinstance(value, list) else ():
        try:
            user_ids.append(parse_user_id(item))
        except InvalidIdentifier:
            continue
    return user_ids


@dataclass(frozen=True, slots=True)
class PowerLevels:
    """The power levels of one state of a room; parses only what is asked for.

    `content` is None while the room has no m.room.power_levels event, which is not the same as
    an empty one: then, before version 12, the creator has 100.
    """

    content: Mapping[str, Any] | None
    creators: frozenset[UserId]
    rules: RoomVersionRules

    @classmethod
    def of(cls, power_levels: Event | None, create: Event) -> "PowerLevels":
        """The levels of a state with these two events."""
        return cls(None if power_levels is None else power_levels.content, creators_of(create), create.rules)

    def user_level(self, user_id: str) -> int:
        """The power of a user; `CREATOR_POWER` for the creators of version 12."""
        if user_id in self.creators:
            if self.rules.privileged_creators:
                return CREATOR_POWER
            if self.content is None:
                return 100
        level = parse_level(self._section("users").get(user_id), self.rules)
        return self.named("users_default") if level is None else level

    def named(self, name: str) -> int:
        """One of the levels of `DEFAULT_LEVELS`, by its name in the event."""
        level = parse_level(self.content.get(name), self.rules) if self.content else None
        return DEFAULT_LEVELS[name] if level is None else level

    def required_for(self, event_type: str, *, is_state: bool) -> int:
        """The *required power level* of an event type (membership has its own rules)."""
        level = parse_level(self._section("events").get(event_type), self.rules)
        if level is not None:
            return level
        return self.named("state_default" if is_state else "events_default")

    def required_for_notification(self, key: str = "room") -> int:
        """The level needed to notify by this key, such as `room` for @room."""
        level = parse_level(self._section("notifications").get(key), self.rules)
        return _NOTIFICATION_DEFAULT if level is None else level

    def may_send(self, user_id: str, event_type: str, *, is_state: bool) -> bool:
        """Whether a user's power suffices for an event type that has no rule of its own."""
        return self.user_level(user_id) >= self.required_for(event_type, is_state=is_state)

    def may_invite(self, user_id: str) -> bool:
        return self.user_level(user_id) >= self.named("invite")

    def may_redact_others(self, user_id: str) -> bool:
        return self.user_level(user_id) >= self.named("redact")

    def may_kick(self, user_id: str, target: str) -> bool:
        level = self.user_level(user_id)
        return level >= self.named("kick") and self.user_level(target) < level

    def may_ban(self, user_id: str, target: str) -> bool:
        level = self.user_level(user_id)
        return level >= self.named("ban") and self.user_level(target) < level

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self.content.get(name) if self.content else None
        return section if isinstance(section, Mapping) else _EMPTY
