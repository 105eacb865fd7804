"""What the successor of an upgraded room begins with, and what its predecessor is left with.

Pure: no room, no account and no clock is asked. Spec: C-S API §Room upgrades, "Server behaviour".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matrixcore.canonical_json import MAX_INTEGER, BadJson, check_canonical
from matrixcore.events import Event
from matrixcore.identifiers import EventId, InvalidIdentifier, RoomId, StateKey, UserId, parse_user_id
from matrixcore.power_levels import DEFAULT_LEVELS, PowerLevels, parse_level
from matrixcore.room_versions import RoomVersionRules
from services.gateway.new_room import CREATOR_LEVEL, MemberProfile
from tessera.commands import NewEvent

CREATE: StateKey = ("m.room.create", "")
POWER_LEVELS: StateKey = ("m.room.power_levels", "")
CANONICAL_ALIAS: StateKey = ("m.room.canonical_alias", "")
TOMBSTONE: StateKey = ("m.room.tombstone", "")

# Copied as they are; power levels, aliases, bans and the children of spaces have rules of their own. A space's
# parents are not copied: clients believe them by the power that their sender has in the parent.
COPIED_KEYS: tuple[StateKey, ...] = tuple(
    (event_type, "")
    for event_type in (
        "m.room.join_rules",
        "m.room.history_visibility",
        "m.room.guest_access",
        "m.room.encryption",
        "m.room.name",
        "m.room.topic",
        "m.room.avatar",
        "m.room.server_acl",
    )
)
SPACE = "m.space"

_SECTIONS = ("users", "events", "notifications")
_RESTRICTED = ("events_default", "invite")
_RESTRICTED_LEVEL = 50


def successor_create_content(
    old_create: Event,
    rules: RoomVersionRules,
    creator: UserId,
    *,
    additional_creators: Sequence[UserId] = (),
    last_event_id: EventId | None = None,
) -> dict[str, Any]:
    """The content of the new room's m.room.create.

    Args:
        rules: of the new room's version.
        additional_creators: ignored in versions that have none.
        last_event_id: the last known event of the old room, which some clients cannot do without.
    """
    predecessor: dict[str, Any] = {"room_id": old_create.room_id}
    if last_event_id is not None:
        predecessor["event_id"] = last_event_id
    content: dict[str, Any] = {"room_version": rules.version, "predecessor": predecessor}
    if isinstance(room_type := old_create.content.get("type"), str):
        content["type"] = room_type
    if old_create.content.get("m.federate") is False:
        content["m.federate"] = False
    if not rules.implicit_room_creator:
        content["creator"] = creator
    others = [user_id for user_id in dict.fromkeys(additional_creators) if user_id != creator]
    if others and rules.privileged_creators:
        content["additional_creators"] = others
    return content


def successor_power_levels(
    old: PowerLevels, rules: RoomVersionRules, creators: Iterable[UserId], creator: UserId
) -> dict[str, Any]:
    """The old room's power levels as the new room's version has them.

    Where creators have power of their own they have no level; where they had it in the old room and have it no
    longer, they get one, as `creator` does if the old room had no levels at all.

    Args:
        creators: of the new room, the one who makes it too.
    """
    content = dict(old.content or {})
    for name in DEFAULT_LEVELS:
        if name in content:
            _put(content, name, content[name], old.rules)
    for section in _SECTIONS:
        levels: dict[str, Any] = {}
        for key, value in _section(content, section).items():
            if section != "users" or _is_user(key):
                _put(levels, key, value, old.rules)
        if section in content or section == "users":
            content[section] = levels
    users: dict[str, Any] = content["users"]
    if rules.privileged_creators:
        content["users"] = {user_id: level for user_id, level in users.items() if user_id not in set(creators)}
    elif old.rules.privileged_creators or old.content is None:
        level = max(CREATOR_LEVEL, highest_level(content))
        content["users"] = {**users, **dict.fromkeys(sorted({*old.creators, creator}), level)}
    return content


def raised_for(content: Mapping[str, Any], user_id: UserId) -> dict[str, Any]:
    """The levels with a user on top of everybody, so that the user can put everything into place."""
    return {**content, "users": {**_section(content, "users"), user_id: max(CREATOR_LEVEL, highest_level(content))}}


def highest_level(content: Mapping[str, Any]) -> int:
    """The highest level that some power levels name, of users and of what they may do."""
    levels = [value for name in _SECTIONS for value in _section(content, name).values()]
    levels += [content[name] for name in DEFAULT_LEVELS if name in content]
    return max((level for level in levels if type(level) is int), default=0)


def restricted_levels(old: PowerLevels) -> dict[str, Any]:
    """The old room's power levels, with talking and inviting kept to its moderators."""
    floor = max(_RESTRICTED_LEVEL, old.named("users_default") + 1)
    return {**(old.content or {}), **{name: max(old.named(name), floor) for name in _RESTRICTED}}


def successor_events(
    creator: UserId,
    profile: MemberProfile,
    power_levels: Mapping[str, Any],
    copied: Mapping[StateKey, Mapping[str, Any]],
    rules: RoomVersionRules,
) -> tuple[NewEvent, ...]:
    """Everything after the new room's m.room.create.

    Args:
        copied: contents of the old room's state; what is none of COPIED_KEYS is left out.
    """
    events = [NewEvent("m.room.member", creator, profile.content("join"))]
    events.append(NewEvent(*POWER_LEVELS, dict(power_levels)))
    for key in COPIED_KEYS:
        if key in copied and is_sendable(copied[key], rules):
            events.append(NewEvent(*key, dict(copied[key])))
    return tuple(events)


def is_sendable(content: Mapping[str, Any], rules: RoomVersionRules) -> bool:
    """Whether a room of this version takes the content: rooms up to version 5 hold numbers that others do not."""
    try:
        check_canonical(content, allow_floats=not rules.strict_canonical_json)
    except BadJson:
        return False
    return True


def moved_alias_content(content: Mapping[str, Any], moved: Iterable[str]) -> dict[str, Any]:
    """The content of the new room's m.room.canonical_alias: those of the old room's aliases that lead there now."""
    there = set(moved)
    kept: dict[str, Any] = {}
    if content.get("alias") in there:
        kept["alias"] = content["alias"]
    others = content.get("alt_aliases")
    if isinstance(others, list) and (alternatives := [name for name in others if name in there]):
        kept["alt_aliases"] = alternatives
    return kept


def remaining_alias_content(content: Mapping[str, Any], moved: Iterable[str]) -> dict[str, Any]:
    """The content of the old room's m.room.canonical_alias: without those that lead to the new room now."""
    there = set(moved)
    left = {key: value for key, value in content.items() if key != "alias" or value not in there}
    others = left.get("alt_aliases")
    if isinstance(others, list):
        left["alt_aliases"] = [name for name in others if name not in there]
    return left


def tombstone_content(new_room_id: RoomId) -> dict[str, Any]:
    """What says in the old room where it goes on. Spec: §m.room.tombstone."""
    return {"body": "This room has been replaced", "replacement_room": new_room_id}


def _put(levels: dict[str, Any], key: str, value: object, rules: RoomVersionRules) -> None:
    """Set a level as an integer; what is none goes."""
    level = parse_level(value, rules)
    if level is None:
        levels.pop(key, None)
    else:
        levels[key] = max(-MAX_INTEGER, min(level, MAX_INTEGER))


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = content.get(name)
    return section if isinstance(section, Mapping) else {}


def _is_user(text: str) -> bool:
    try:
        parse_user_id(text)
    except InvalidIdentifier:
        return False
    return True
