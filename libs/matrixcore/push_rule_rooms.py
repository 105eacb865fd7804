"""A user's push rules about a room, carried to the room that follows it.

Spec: C-S API §Room upgrades, "Server behaviour"; §Push rules.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matrixcore.identifiers import RoomId
from matrixcore.push_rules import MAX_PATTERN_RULES, MAX_ROOM_OR_SENDER_RULES, PushRule, RuleKind, UserPushRules

_WITH_CONDITIONS = (RuleKind.OVERRIDE, RuleKind.UNDERRIDE)


def carry_room_rules(rules: UserPushRules, old: RoomId, new: RoomId) -> UserPushRules:
    """The rules with a copy of each rule about `old` for `new`, right behind it. Repeatable.

    These are the rule of kind room that bears the room's ID, and override and underride rules with the condition that
    the event's room is the old one. Where the user has no room left for more rules of a kind, none are copied.
    """
    own = dict(rules.own)
    for kind, ours in rules.own.items():
        names = {rule.rule_id for rule in ours}
        carried: list[PushRule] = []
        for rule in ours:
            carried.append(rule)
            copy = _copied(kind, rule, old, new)
            if copy is not None and copy.rule_id not in names:
                carried.append(copy)
        limit = MAX_PATTERN_RULES if kind in _WITH_CONDITIONS else MAX_ROOM_OR_SENDER_RULES
        if len(carried) <= limit:
            own[kind] = tuple(carried)
    return replace(rules, own=own)


def _copied(kind: RuleKind, rule: PushRule, old: RoomId, new: RoomId) -> PushRule | None:
    if kind is RuleKind.ROOM:
        return replace(rule, rule_id=new) if rule.rule_id == old else None
    if kind not in _WITH_CONDITIONS or not any(_names(condition, old) for condition in rule.conditions):
        return None
    conditions = tuple({**one, "pattern": new} if _names(one, old) else one for one in rule.conditions)
    name = rule.rule_id.replace(old, new) if old in rule.rule_id else f"{rule.rule_id}_{new}"
    return replace(rule, rule_id=name, conditions=conditions)


def _names(condition: Mapping[str, Any], room_id: RoomId) -> bool:
    """Whether the condition is that the event is in the room."""
    return (
        condition.get("kind") == "event_match"
        and condition.get("key") == "room_id"
        and condition.get("pattern") == room_id
    )
