"""The authorisation rule for m.room.power_levels: nobody grants or takes what is above them.

Spec: Room Versions §Authorisation rules, rule 9 of version 11 (10 in versions 1 to 5 and 12).
"""

from collections.abc import Mapping
from typing import Any

from matrixcore.events import Event
from matrixcore.identifiers import InvalidIdentifier, parse_user_id
from matrixcore.power_levels import DEFAULT_LEVELS, PowerLevels, parse_level
from matrixcore.room_versions import RoomVersionRules
from matrixcore.verdicts import ACCEPTED, Accepted, Rejected


def check_power_levels(event: Event, levels: PowerLevels) -> Accepted | Rejected:
    """Rule 9. `levels` are those before the event."""
    malformed = _find_malformed(event.content, levels)
    if malformed is not None:
        return Rejected(malformed)
    if levels.content is None:
        return ACCEPTED  # 9.4
    own = levels.user_level(event.sender)
    reason = (
        _check_named(levels.content, event.content, own, event.rules)
        or _check_sections(levels.content, event.content, own, event.rules)
        or _check_users(levels.content, event.content, own, event.sender, event.rules)
    )
    return ACCEPTED if reason is None else Rejected(reason)


def _find_malformed(content: Mapping[str, Any], levels: PowerLevels) -> str | None:
    """Rules 9.1 to 9.3 (10.4 in version 12)."""
    rules = levels.rules
    if rules.integer_power_levels:
        for name in DEFAULT_LEVELS:
            if name in content and parse_level(content[name], rules) is None:
                return f"{name} must be an integer"  # 9.1
        for section in ("events", "notifications"):
            if section in content and not _is_object_of_levels(content[section], rules):
                return f"{section} must be an object of integers"  # 9.2
    if "users" in content:
        users = content["users"]
        if not _is_object_of_levels(users, rules):
            return "users must be an object of integers"  # 9.3
        try:
            for user_id in users:
                parse_user_id(user_id)
        except InvalidIdentifier as error:
            return f"users: {error}"
        if rules.privileged_creators and not levels.creators.isdisjoint(users):
            return "users must not name a creator of the room"  # 10.4 of version 12
    return None


def _is_object_of_levels(value: object, rules: RoomVersionRules) -> bool:
    return isinstance(value, Mapping) and all(parse_level(level, rules) is not None for level in value.values())


def _check_named(old: Mapping[str, Any], new: Mapping[str, Any], own: int, rules: RoomVersionRules) -> str | None:
    """Rule 9.5."""
    for name in DEFAULT_LEVELS:
        if name in new and parse_level(new[name], rules) is None:
            return f"{name} must be an integer"  # what cannot be compared is never let in
        before, after = parse_level(old.get(name), rules), parse_level(new.get(name), rules)
        if _exceeds(before, after, own):
            return f"{name} is beyond the sender's power"
    return None


def _check_sections(old: Mapping[str, Any], new: Mapping[str, Any], own: int, rules: RoomVersionRules) -> str | None:
    """Rules 9.6 and 9.7."""
    for section in ("events", "notifications") if rules.limit_notifications_power_levels else ("events",):
        if section in new and not _is_object_of_levels(new[section], rules):
            return f"{section} must be an object of integers"
        old_levels, new_levels = _object(old.get(section)), _object(new.get(section))
        for key in dict.fromkeys((*old_levels, *new_levels)):
            before, after = parse_level(old_levels.get(key), rules), parse_level(new_levels.get(key), rules)
            if _exceeds(before, after, own):
                return f"the level of {key!r} in {section} is beyond the sender's power"
    return None


def _check_users(
    old: Mapping[str, Any], new: Mapping[str, Any], own: int, sender: str, rules: RoomVersionRules
) -> str | None:
    """Rules 9.8 and 9.9."""
    old_levels, new_levels = _object(old.get("users")), _object(new.get("users"))
    if old_levels == new_levels:
        return None
    for user_id in dict.fromkeys((*old_levels, *new_levels)):
        before, after = parse_level(old_levels.get(user_id), rules), parse_level(new_levels.get(user_id), rules)
        if before == after:
            continue
        if before is not None and before >= own and user_id != sender:
            return "a user with at least the sender's power cannot be changed by them"  # 9.8
        if after is not None and after > own:
            return "nobody can be given more than the sender's power"  # 9.9
    return None


def _exceeds(before: int | None, after: int | None, own: int) -> bool:
    """Whether an alteration starts or ends above the sender's power; None: not there."""
    if before == after:
        return False
    return (before is not None and before > own) or (after is not None and after > own)


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
