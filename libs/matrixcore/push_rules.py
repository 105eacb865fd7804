"""Push rules as data: the server's defaults, a user's own rules and changes, and their merge.

A user's rules are one frozen value; each change gives a new one. Only what differs from the
defaults is kept, so that a new default reaches everybody.

Spec: C-S API §Push Notifications, "Push Rules", "Predefined Rules", "Push Rules: API".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from matrixcore.identifiers import UserId

MAX_ROOM_OR_SENDER_RULES: Final = 5_000  # of each; looked up by ID, so their number costs nothing per event
MAX_PATTERN_RULES: Final = 500  # of each other kind; these are tried one after the other
MAX_CONDITIONS: Final = 50
MAX_ACTIONS: Final = 20
MAX_PATTERN_LENGTH: Final = 256  # characters
MAX_RULE_ID_LENGTH: Final = 512  # characters

MEMBER_COUNT_PATTERN: Final = re.compile(r"(==|<=|>=|<|>)?([0-9]{1,15})")

_HISTORICAL_ACTIONS = frozenset(("dont_notify", "coalesce"))
_SAFE_INTEGER = 2**53 - 1


class RuleKind(StrEnum):
    """The kinds of rules in the order in which they are tried."""

    OVERRIDE = "override"
    CONTENT = "content"
    ROOM = "room"
    SENDER = "sender"
    UNDERRIDE = "underride"


class InvalidPushRule(ValueError):
    """A rule or its place does not fit the specification (400). `field` is the offending part."""

    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(f"{field_name}: {reason}")
        self.field = field_name


class RelatedRuleNotFound(ValueError):
    """`before` or `after` names no rule of the user's own (400 M_UNKNOWN)."""

    def __init__(self, rule_id: str) -> None:
        super().__init__(f"before/after rule not found: {rule_id}")


class PushRuleNotFound(LookupError):
    """The user has no such rule (404 M_NOT_FOUND)."""

    def __init__(self, kind: str, rule_id: str) -> None:
        super().__init__(f"The push rule was not found: {kind}/{rule_id}")


@dataclass(frozen=True, slots=True)
class PushRule:
    """One rule; `conditions` and `actions` are JSON values that must not be changed."""

    rule_id: str
    actions: tuple[Any, ...]
    conditions: tuple[Mapping[str, Any], ...] = ()  # of override and underride rules
    pattern: str | None = None  # of content rules
    enabled: bool = True
    default: bool = False


@dataclass(frozen=True, slots=True)
class DefaultChange:
    """What a user changed of a server-default rule; None is unchanged."""

    enabled: bool | None = None
    actions: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class UserPushRules:
    """All that one user's rules differ from the defaults in.

    `own` holds the user's rules of each kind, the most important first.
    """

    own: Mapping[RuleKind, tuple[PushRule, ...]] = field(default_factory=dict)
    changes: Mapping[tuple[RuleKind, str], DefaultChange] = field(default_factory=dict)


NO_USER_RULES: Final = UserPushRules()

Ruleset = Mapping[RuleKind, tuple[PushRule, ...]]  # every kind, rules in order of evaluation

_NOTIFY = ("notify",)
_HIGHLIGHT = {"set_tweak": "highlight"}
_SOUND = {"set_tweak": "sound", "value": "default"}
_RING = {"set_tweak": "sound", "value": "ring"}


def _match(key: str, pattern: str) -> dict[str, Any]:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _default(
    rule_id: str, conditions: Iterable[Mapping[str, Any]], actions: tuple[Any, ...], *, enabled: bool = True
) -> PushRule:
    return PushRule(rule_id, actions, tuple(conditions), enabled=enabled, default=True)


MASTER_RULE: Final = _default(".m.rule.master", (), (), enabled=False)

_TWO_MEMBERS = {"kind": "room_member_count", "is": "2"}

_DEFAULT_UNDERRIDES: Final = (
    _default(".m.rule.call", [_match("type", "m.call.invite")], ("notify", _RING)),
    _default(
        ".m.rule.encrypted_room_one_to_one",
        [_TWO_MEMBERS, _match("type", "m.room.encrypted")],
        ("notify", _SOUND),
    ),
    _default(".m.rule.room_one_to_one", [_TWO_MEMBERS, _match("type", "m.room.message")], ("notify", _SOUND)),
    _default(".m.rule.message", [_match("type", "m.room.message")], _NOTIFY),
    _default(".m.rule.encrypted", [_match("type", "m.room.encrypted")], _NOTIFY),
)

_RULES_BEFORE_MENTION: Final = (_default(".m.rule.suppress_notices", [_match("content.msgtype", "m.notice")], ()),)
_RULES_AFTER_MENTION: Final = (
    _default(
        ".m.rule.is_room_mention",
        [
            {"kind": "event_property_is", "key": r"content.m\.mentions.room", "value": True},
            {"kind": "sender_notification_permission", "key": "room"},
        ],
        ("notify", _HIGHLIGHT),
    ),
    _default(
        ".m.rule.tombstone", [_match("type", "m.room.tombstone"), _match("state_key", "")], ("notify", _HIGHLIGHT)
    ),
    _default(".m.rule.reaction", [_match("type", "m.reaction")], ()),
    _default(".m.rule.room.server_acl", [_match("type", "m.room.server_acl"), _match("state_key", "")], ()),
    _default(
        ".m.rule.suppress_edits",
        [{"kind": "event_property_is", "key": r"content.m\.relates_to.rel_type", "value": "m.replace"}],
        (),
    ),
)


def _default_overrides(user_id: UserId) -> tuple[PushRule, ...]:
    """The override rules below the user's own; two of them name the user."""
    invite = _default(
        ".m.rule.invite_for_me",
        [
            _match("type", "m.room.member"),
            _match("content.membership", "invite"),
            _match("state_key", str(user_id)),
        ],
        ("notify", _SOUND),
    )
    mention = _default(
        ".m.rule.is_user_mention",
        [{"kind": "event_property_contains", "key": r"content.m\.mentions.user_ids", "value": str(user_id)}],
        ("notify", _SOUND, _HIGHLIGHT),
    )
    member = _default(".m.rule.member_event", [_match("type", "m.room.member")], ())
    return (*_RULES_BEFORE_MENTION, invite, member, mention, *_RULES_AFTER_MENTION)


def _defaults(user_id: UserId) -> dict[RuleKind, tuple[PushRule, ...]]:
    return {
        RuleKind.OVERRIDE: (MASTER_RULE, *_default_overrides(user_id)),
        RuleKind.CONTENT: (),
        RuleKind.ROOM: (),
        RuleKind.SENDER: (),
        RuleKind.UNDERRIDE: _DEFAULT_UNDERRIDES,
    }


_DEFAULT_RULE_IDS: Final = frozenset(
    (kind, rule.rule_id) for kind, rules in _defaults(UserId("@_:_")).items() for rule in rules
)


def merged_ruleset(user_id: UserId, rules: UserPushRules) -> Ruleset:
    """The user's complete rules in the order of evaluation.

    Own rules come before the defaults of their kind, except that `.m.rule.master` is above all.
    """
    merged: dict[RuleKind, tuple[PushRule, ...]] = {}
    for kind, defaults in _defaults(user_id).items():
        ours = tuple(_with_change(rule, rules.changes.get((kind, rule.rule_id))) for rule in defaults)
        own = rules.own.get(kind, ())
        first = 1 if kind is RuleKind.OVERRIDE else 0
        merged[kind] = (*ours[:first], *own, *ours[first:])
    return merged


def find_rule(ruleset: Ruleset, kind: RuleKind, rule_id: str) -> PushRule | None:
    """The rule of this kind and ID in a merged ruleset."""
    return next((rule for rule in ruleset[kind] if rule.rule_id == rule_id), None)


def rule_json(kind: RuleKind, rule: PushRule) -> dict[str, Any]:
    """A rule as GET /pushrules serves it (PushRule of the API)."""
    body: dict[str, Any] = {
        "rule_id": rule.rule_id,
        "default": rule.default,
        "enabled": rule.enabled,
        "actions": list(rule.actions),
    }
    if kind in (RuleKind.OVERRIDE, RuleKind.UNDERRIDE):
        body["conditions"] = [dict(condition) for condition in rule.conditions]
    if rule.pattern is not None:
        body["pattern"] = rule.pattern
    return body


def ruleset_json(ruleset: Ruleset) -> dict[str, Any]:
    """A merged ruleset as the `global` part of GET /pushrules and of the m.push_rules event."""
    return {kind.value: [rule_json(kind, rule) for rule in ruleset[kind]] for kind in RuleKind}


def parse_kind(kind: str) -> RuleKind:
    """Raises InvalidPushRule for anything but the five kinds."""
    try:
        return RuleKind(kind)
    except ValueError:
        raise InvalidPushRule("kind", f"unknown kind of push rule: {kind[:64]}") from None


def put_rule(
    rules: UserPushRules,
    kind: RuleKind,
    rule_id: str,
    body: Mapping[str, Any],
    *,
    before: str | None = None,
    after: str | None = None,
) -> UserPushRules:
    """Add or replace a rule of the user's own.

    A new rule is enabled and, without `before` or `after`, the most important one of its kind; a
    replaced rule stays enabled or disabled and, without them, in its place. `before` wins over `after`.

    Raises InvalidPushRule and RelatedRuleNotFound (400).
    """
    _check_rule_id(rule_id)
    own = rules.own.get(kind, ())
    old = next((rule for rule in own if rule.rule_id == rule_id), None)
    rule = PushRule(
        rule_id,
        parse_actions(body),
        _parse_conditions(body) if kind in (RuleKind.OVERRIDE, RuleKind.UNDERRIDE) else (),
        _parse_pattern(body) if kind is RuleKind.CONTENT else None,
        enabled=old.enabled if old is not None else True,
    )
    limit = MAX_ROOM_OR_SENDER_RULES if kind in (RuleKind.ROOM, RuleKind.SENDER) else MAX_PATTERN_RULES
    if old is None and len(own) >= limit:
        raise InvalidPushRule("kind", f"more than {limit} rules of this kind")
    if old is not None and before is None and after is None:
        return _with_own(rules, kind, [rule if other is old else other for other in own])
    others = [other for other in own if other is not old]
    place = _place(others, before, after)
    return _with_own(rules, kind, [*others[:place], rule, *others[place:]])


def delete_rule(rules: UserPushRules, kind: RuleKind, rule_id: str) -> UserPushRules:
    """Remove a rule of the user's own. Raises PushRuleNotFound; InvalidPushRule for a default rule."""
    if (kind, rule_id) in _DEFAULT_RULE_IDS:
        raise InvalidPushRule("ruleId", "server-default rules cannot be deleted")
    own = rules.own.get(kind, ())
    left = [rule for rule in own if rule.rule_id != rule_id]
    if len(left) == len(own):
        raise PushRuleNotFound(kind, rule_id)
    return _with_own(rules, kind, left)


def set_enabled(rules: UserPushRules, kind: RuleKind, rule_id: str, enabled: bool) -> UserPushRules:
    """Switch any rule, default ones included. Raises PushRuleNotFound."""
    if (kind, rule_id) in _DEFAULT_RULE_IDS:
        change = rules.changes.get((kind, rule_id), DefaultChange())
        return _with_change_of(rules, kind, rule_id, replace(change, enabled=enabled))
    return _with_own_rule(rules, kind, rule_id, enabled=enabled)


def set_actions(rules: UserPushRules, kind: RuleKind, rule_id: str, body: Mapping[str, Any]) -> UserPushRules:
    """Replace the actions of any rule, default ones included, by `body["actions"]`.

    Raises PushRuleNotFound and InvalidPushRule.
    """
    actions = parse_actions(body)
    if (kind, rule_id) in _DEFAULT_RULE_IDS:
        change = rules.changes.get((kind, rule_id), DefaultChange())
        return _with_change_of(rules, kind, rule_id, replace(change, actions=actions))
    return _with_own_rule(rules, kind, rule_id, actions=actions)


def parse_actions(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """The list under `actions`. Raises InvalidPushRule.

    The historical ones mean nothing and are kept: matrix-js-sdk knows by `dont_notify` that it has muted a room.
    """
    actions = body.get("actions")
    if not isinstance(actions, list):
        raise InvalidPushRule("actions", "must be a list")
    if len(actions) > MAX_ACTIONS:
        raise InvalidPushRule("actions", f"more than {MAX_ACTIONS} actions")
    for action in actions:
        if isinstance(action, str):
            if action != "notify" and action not in _HISTORICAL_ACTIONS:
                raise InvalidPushRule("actions", f"unknown action: {action[:64]}")
        elif not isinstance(action, dict) or not isinstance(action.get("set_tweak"), str):
            raise InvalidPushRule("actions", "an action is a name or an object with set_tweak")
    return tuple(actions)


def stored_form(rules: UserPushRules) -> dict[str, Any]:
    """The JSON in which a user's rules are kept; `from_stored_form` reads it back."""
    return {
        "own": {kind.value: [rule_json(kind, rule) for rule in own] for kind, own in rules.own.items() if own},
        "changes": [
            {
                "kind": kind.value,
                "rule_id": rule_id,
                "enabled": change.enabled,
                "actions": None if change.actions is None else list(change.actions),
            }
            for (kind, rule_id), change in rules.changes.items()
        ],
    }


def from_stored_form(stored: Mapping[str, Any]) -> UserPushRules:
    """Read what `stored_form` wrote; changes of defaults that exist no longer are dropped."""
    own = {
        RuleKind(kind): tuple(
            PushRule(
                rule["rule_id"],
                tuple(rule["actions"]),
                tuple(rule.get("conditions", ())),
                rule.get("pattern"),
                enabled=rule["enabled"],
            )
            for rule in kept
        )
        for kind, kept in stored.get("own", {}).items()
    }
    changes = {
        (RuleKind(change["kind"]), change["rule_id"]): DefaultChange(
            change["enabled"], None if change["actions"] is None else tuple(change["actions"])
        )
        for change in stored.get("changes", ())
        if (change["kind"], change["rule_id"]) in _DEFAULT_RULE_IDS
    }
    return UserPushRules(own, changes)


def _with_change(rule: PushRule, change: DefaultChange | None) -> PushRule:
    if change is None:
        return rule
    return replace(
        rule,
        enabled=rule.enabled if change.enabled is None else change.enabled,
        actions=rule.actions if change.actions is None else change.actions,
    )


def _with_own(rules: UserPushRules, kind: RuleKind, own: Sequence[PushRule]) -> UserPushRules:
    return replace(rules, own={**rules.own, kind: tuple(own)})


def _with_change_of(rules: UserPushRules, kind: RuleKind, rule_id: str, change: DefaultChange) -> UserPushRules:
    return replace(rules, changes={**rules.changes, (kind, rule_id): change})


def _with_own_rule(
    rules: UserPushRules,
    kind: RuleKind,
    rule_id: str,
    *,
    enabled: bool | None = None,
    actions: tuple[Any, ...] | None = None,
) -> UserPushRules:
    own = rules.own.get(kind, ())
    if all(rule.rule_id != rule_id for rule in own):
        raise PushRuleNotFound(kind, rule_id)
    change = DefaultChange(enabled, actions)
    return _with_own(rules, kind, [_with_change(rule, change) if rule.rule_id == rule_id else rule for rule in own])


def _place(others: Sequence[PushRule], before: str | None, after: str | None) -> int:
    """The index at which a rule goes in; both names are checked though `before` alone decides."""
    index = {rule.rule_id: place for place, rule in enumerate(others)}
    for name in (before, after):
        if name is not None and name not in index:
            raise RelatedRuleNotFound(name)
    if before is not None:
        return index[before]
    return 0 if after is None else index[after] + 1


def _check_rule_id(rule_id: str) -> None:
    if not rule_id or len(rule_id) > MAX_RULE_ID_LENGTH:
        raise InvalidPushRule("ruleId", f"must have 1 to {MAX_RULE_ID_LENGTH} characters")
    if rule_id.startswith("."):
        raise InvalidPushRule("ruleId", "names that start with a dot belong to server-default rules")
    if "/" in rule_id or "\\" in rule_id:
        raise InvalidPushRule("ruleId", "slashes and backslashes are not allowed")


def _parse_pattern(body: Mapping[str, Any]) -> str:
    pattern = body.get("pattern")
    if not isinstance(pattern, str):
        raise InvalidPushRule("pattern", "a content rule needs a pattern")
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise InvalidPushRule("pattern", f"longer than {MAX_PATTERN_LENGTH} characters")
    return pattern


def _parse_conditions(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    conditions = body.get("conditions", [])
    if not isinstance(conditions, list):
        raise InvalidPushRule("conditions", "must be a list")
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidPushRule("conditions", f"more than {MAX_CONDITIONS} conditions")
    for condition in conditions:
        if not isinstance(condition, dict) or not isinstance(condition.get("kind"), str):
            raise InvalidPushRule("conditions", "a condition is an object with a kind")
        _check_condition(condition)
    return tuple(conditions)


def _check_condition(condition: Mapping[str, Any]) -> None:
    """Known conditions must be whole; unknown ones are kept and match nothing."""
    kind = condition["kind"]
    if kind in ("event_match", "event_property_is", "event_property_contains", "sender_notification_permission"):
        key = condition.get("key")
        if not isinstance(key, str) or len(key) > MAX_PATTERN_LENGTH:
            raise InvalidPushRule("conditions", f"{kind} needs a key")
    if kind == "event_match":
        _parse_pattern(condition)
    elif kind in ("event_property_is", "event_property_contains"):
        if "value" not in condition or not is_simple_value(condition["value"]):
            raise InvalidPushRule("conditions", f"{kind} needs a value: text, integer, boolean or null")
    elif kind == "room_member_count":
        bound = condition.get("is")
        if not isinstance(bound, str) or MEMBER_COUNT_PATTERN.fullmatch(bound) is None:
            raise InvalidPushRule("conditions", "room_member_count needs `is`, such as 2 or <=10")


def is_simple_value(value: object) -> bool:
    """Whether event_property_is and event_property_contains can compare with it."""
    if value is None or isinstance(value, str | bool):
        return True
    return isinstance(value, int) and -_SAFE_INTEGER <= value <= _SAFE_INTEGER
