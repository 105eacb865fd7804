"""What the push rules say about one event: for one user, or for everybody with the default rules.

`compile_ruleset` does the parsing once; the evaluator it gives is immutable and may be kept.
`default_outcome` answers once for an event and all members whose rules are the defaults.

Spec: C-S API §Push Notifications, "Push Rules", "Conditions", "Predefined Rules".
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from matrixcore.events import Event
from matrixcore.globs import Matcher, contains_word, whole_value_matcher, word_matcher
from matrixcore.identifiers import UserId
from matrixcore.property_paths import find_property, parse_property_path
from matrixcore.push_rules import MEMBER_COUNT_PATTERN, PushRule, RuleKind, Ruleset, is_simple_value

DEFAULT_NOTIFICATION_LEVEL: Final = 50


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """What happens for one user because of one event."""

    notify: bool
    highlight: bool
    sound: str | None
    tweaks: Mapping[str, Any]  # all tweaks, for the push gateway
    rule_id: str | None  # the rule that decided


NO_PUSH: Final = PushOutcome(notify=False, highlight=False, sound=None, tweaks={}, rule_id=None)


@dataclass(frozen=True, slots=True)
class PushRoom:
    """What the conditions need to know about the room at the event."""

    member_count: int  # joined members
    sender_level: float  # the sender's power level; infinite for creators since version 12
    notification_levels: Mapping[str, Any]  # `notifications` of m.room.power_levels


class _Subject:
    """One event under evaluation; what several conditions share is computed once."""

    __slots__ = ("_folded_body", "body", "display_name", "event", "room")

    def __init__(self, event: Mapping[str, Any], room: PushRoom, display_name: str | None) -> None:
        self.event = event
        self.room = room
        self.display_name = display_name
        content = event.get("content")
        body = content.get("body") if isinstance(content, Mapping) else None
        self.body: str | None = body if isinstance(body, str) else None
        self._folded_body: str | None = None

    def folded_body(self) -> str | None:
        if self._folded_body is None and self.body is not None:
            self._folded_body = self.body.lower()
        return self._folded_body


_Condition = Callable[[_Subject], bool]


@dataclass(frozen=True, slots=True)
class _CompiledRule:
    conditions: tuple[_Condition, ...]
    outcome: PushOutcome

    def matches(self, subject: _Subject) -> bool:
        return all(condition(subject) for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class PushEvaluator:
    """The enabled rules of one user, ready to run."""

    user_id: UserId
    before_rooms: tuple[_CompiledRule, ...]  # override and content rules
    rooms: Mapping[str, PushOutcome]
    senders: Mapping[str, PushOutcome]
    underrides: tuple[_CompiledRule, ...]

    def evaluate(self, event: Mapping[str, Any], room: PushRoom, display_name: str | None = None) -> PushOutcome:
        """The outcome of the first rule that matches.

        Args:
            event: the event as clients see it (type, sender, room_id, content, state_key, event_id).
            display_name: the user's display name in the room, for contains_display_name.
        """
        sender = event.get("sender")
        if sender == self.user_id:
            return NO_PUSH
        subject = _Subject(event, room, display_name)
        for rule in self.before_rooms:
            if rule.matches(subject):
                return rule.outcome
        outcome = self.rooms.get(event.get("room_id", "")) or self.senders.get(sender or "")
        if outcome is not None:
            return outcome
        for rule in self.underrides:
            if rule.matches(subject):
                return rule.outcome
        return NO_PUSH


def compile_ruleset(user_id: UserId, ruleset: Ruleset) -> PushEvaluator:
    """Prepare a merged ruleset (`push_rules.merged_ruleset`); disabled rules fall away here."""
    return PushEvaluator(
        user_id,
        (*_compile_all(ruleset[RuleKind.OVERRIDE]), *_compile_content_rules(ruleset[RuleKind.CONTENT])),
        _outcomes_by_id(ruleset[RuleKind.ROOM]),
        _outcomes_by_id(ruleset[RuleKind.SENDER]),
        tuple(_compile_all(ruleset[RuleKind.UNDERRIDE])),
    )


def push_fields(event: Event) -> dict[str, Any]:
    """An event in the form that `PushEvaluator.evaluate` reads."""
    fields: dict[str, Any] = {
        "event_id": event.event_id,
        "room_id": event.room_id,
        "type": event.type,
        "sender": event.sender,
        "origin_server_ts": event.origin_server_ts,
        "content": event.content,
    }
    if event.state_key is not None:
        fields["state_key"] = event.state_key
    return fields


def may_notify(sender_level: float, notification_levels: object, key: str = "room") -> bool:
    """Whether the sender may use this kind of mention (m.room.power_levels `notifications`)."""
    level = notification_levels.get(key) if isinstance(notification_levels, Mapping) else None
    if isinstance(level, str):  # room versions before 10 allow digits in strings
        try:
            level = int(level)
        except ValueError:
            level = None
    if not isinstance(level, int) or isinstance(level, bool):
        level = DEFAULT_NOTIFICATION_LEVEL
    return sender_level >= level


@dataclass(frozen=True, slots=True)
class DefaultOutcome:
    """The result of the unmodified default rules, for everybody but the sender.

    `notify` and `highlight_all` hold for an ordinary joined member; each user in
    `mentioned_user_ids` is notified with a highlight whatever the others get. `one_to_one`
    is set where the deciding rule was one of the two for rooms of two members, which users
    change apart. `invitee` is the user whom an invite is for: notified, not highlighted.
    """

    notify: bool
    one_to_one: bool
    highlight_all: bool
    mentioned_user_ids: frozenset[UserId]
    invitee: UserId | None
    rule_id: str | None  # the rule that decided for an ordinary member


_NOBODY: Final[frozenset[UserId]] = frozenset()


def _ordinary(
    rule_id: str | None, *, notify: bool = False, one_to_one: bool = False, highlight: bool = False
) -> DefaultOutcome:
    return DefaultOutcome(notify, one_to_one, highlight, _NOBODY, None, rule_id)


_QUIET = _ordinary(None)
_NOTICE = _ordinary(".m.rule.suppress_notices")
_MEMBER = _ordinary(".m.rule.member_event")
_ROOM_MENTION = _ordinary(".m.rule.is_room_mention", notify=True, highlight=True)
_TOMBSTONE = _ordinary(".m.rule.tombstone", notify=True, highlight=True)
_REACTION = _ordinary(".m.rule.reaction")
_SERVER_ACL = _ordinary(".m.rule.room.server_acl")
_EDIT = _ordinary(".m.rule.suppress_edits")
_BY_TYPE: Final = {
    "m.call.invite": (_ordinary(".m.rule.call", notify=True), _ordinary(".m.rule.call", notify=True)),
    "m.room.message": (
        _ordinary(".m.rule.message", notify=True),
        _ordinary(".m.rule.room_one_to_one", notify=True, one_to_one=True),
    ),
    "m.room.encrypted": (
        _ordinary(".m.rule.encrypted", notify=True),
        _ordinary(".m.rule.encrypted_room_one_to_one", notify=True, one_to_one=True),
    ),
}


def default_outcome(
    event_type: str,
    state_key: str | None,
    sender: str,
    content: Mapping[str, Any],
    member_count: int,
    sender_may_notify_room: Callable[[], bool],
) -> DefaultOutcome:
    """Evaluate the default rules once for all members.

    `sender_may_notify_room` is asked only when the event mentions the room (see `may_notify`).
    The sender's own mention of themselves counts for nothing.

    Spec: C-S API §Predefined Rules, in their order.
    """
    kind = event_type.lower()  # event_match ignores case
    msgtype = content.get("msgtype")
    if isinstance(msgtype, str) and msgtype.lower() == "m.notice":
        return _NOTICE
    if kind == "m.room.member":
        return _member_outcome(state_key, sender, content)
    mentions = content.get("m.mentions")
    if not isinstance(mentions, Mapping):
        return _unmentioned(kind, state_key, content, member_count)
    mentioned = _mentioned_users(mentions, sender)
    if mentions.get("room") is True and sender_may_notify_room():
        ordinary = _ROOM_MENTION
    else:
        ordinary = _unmentioned(kind, state_key, content, member_count)
    if not mentioned:
        return ordinary
    return DefaultOutcome(
        ordinary.notify, ordinary.one_to_one, ordinary.highlight_all, mentioned, None, ordinary.rule_id
    )


def _member_outcome(state_key: str | None, sender: str, content: Mapping[str, Any]) -> DefaultOutcome:
    membership = content.get("membership")
    if not isinstance(membership, str) or membership.lower() != "invite" or state_key in (None, sender):
        return _MEMBER
    return DefaultOutcome(False, False, False, _NOBODY, UserId(state_key or ""), _MEMBER.rule_id)


def _mentioned_users(mentions: Mapping[str, Any], sender: str) -> frozenset[UserId]:
    user_ids = mentions.get("user_ids")
    if not isinstance(user_ids, list) or not user_ids:
        return _NOBODY
    return frozenset(UserId(user_id) for user_id in user_ids if isinstance(user_id, str) and user_id != sender)


def _unmentioned(kind: str, state_key: str | None, content: Mapping[str, Any], member_count: int) -> DefaultOutcome:
    """The rules after the mentions."""
    if kind == "m.reaction":
        return _REACTION
    if state_key == "":
        if kind == "m.room.tombstone":
            return _TOMBSTONE
        if kind == "m.room.server_acl":
            return _SERVER_ACL
    relates_to = content.get("m.relates_to")
    if isinstance(relates_to, Mapping) and relates_to.get("rel_type") == "m.replace":
        return _EDIT
    by_type = _BY_TYPE.get(kind)
    return _QUIET if by_type is None else by_type[member_count == 2]


def _compile_all(rules: Iterable[PushRule]) -> Iterable[_CompiledRule]:
    for rule in rules:
        if rule.enabled:
            yield _CompiledRule(tuple(map(_compile_condition, rule.conditions)), _outcome_of(rule))


def _compile_content_rules(rules: Iterable[PushRule]) -> Iterable[_CompiledRule]:
    for rule in rules:
        if rule.enabled and rule.pattern is not None:
            yield _CompiledRule((_body_condition(rule.pattern),), _outcome_of(rule))


def _outcomes_by_id(rules: Iterable[PushRule]) -> dict[str, PushOutcome]:
    return {rule.rule_id: _outcome_of(rule) for rule in rules if rule.enabled}


def _outcome_of(rule: PushRule) -> PushOutcome:
    tweaks: dict[str, Any] = {}
    for action in rule.actions:
        if isinstance(action, Mapping):
            name = action.get("set_tweak")
            if isinstance(name, str):
                # A highlight without value means true; other tweaks have no such default.
                tweaks[name] = action.get("value", True if name == "highlight" else None)
    sound = tweaks.get("sound")
    return PushOutcome(
        notify="notify" in rule.actions,
        highlight=tweaks.get("highlight", False) is True,
        sound=sound if isinstance(sound, str) else None,
        tweaks=tweaks,
        rule_id=rule.rule_id,
    )


def _never(_subject: _Subject) -> bool:
    return False


def _compile_condition(condition: Mapping[str, Any]) -> _Condition:
    """Unknown and malformed conditions match nothing, which disables their rule."""
    match condition.get("kind"), condition.get("key"):
        case "event_match", str() as key if isinstance(condition.get("pattern"), str):
            return _event_match(key, condition["pattern"])
        case "event_property_is", str() as key if is_simple_value(condition.get("value", ())):
            return _property_is(key, condition["value"])
        case "event_property_contains", str() as key if is_simple_value(condition.get("value", ())):
            return _property_contains(key, condition["value"])
        case "contains_display_name", _:
            return _contains_display_name
        case "room_member_count", _ if isinstance(condition.get("is"), str):
            return _member_count(condition["is"])
        case "sender_notification_permission", str() as key:
            return lambda subject: may_notify(subject.room.sender_level, subject.room.notification_levels, key)
        case _:
            return _never


def _event_match(key: str, pattern: str) -> _Condition:
    if key == "content.body":
        return _body_condition(pattern)
    path = parse_property_path(key)
    matches: Matcher = whole_value_matcher(pattern)

    def condition(subject: _Subject) -> bool:
        value = find_property(subject.event, path)
        return isinstance(value, str) and matches(value)

    return condition


def _body_condition(pattern: str) -> _Condition:
    matches = word_matcher(pattern)
    return lambda subject: subject.body is not None and matches(subject.body)


def _same(value: object, expected: object) -> bool:
    """Equal as JSON values: True is not 1."""
    return value == expected and type(value) is type(expected)


def _property_is(key: str, expected: object) -> _Condition:
    path = parse_property_path(key)
    return lambda subject: _same(find_property(subject.event, path), expected)


def _property_contains(key: str, expected: object) -> _Condition:
    path = parse_property_path(key)

    def condition(subject: _Subject) -> bool:
        values = find_property(subject.event, path)
        return isinstance(values, list) and any(_same(value, expected) for value in values)

    return condition


def _contains_display_name(subject: _Subject) -> bool:
    body = subject.folded_body()
    return body is not None and bool(subject.display_name) and contains_word(body, (subject.display_name or "").lower())


_COMPARISONS: Final[dict[str | None, Callable[[int, int], bool]]] = {
    None: operator.eq,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def _member_count(bound: str) -> _Condition:
    parsed = MEMBER_COUNT_PATTERN.fullmatch(bound)
    if parsed is None:
        return _never
    compare, number = _COMPARISONS[parsed[1]], int(parsed[2])
    return lambda subject: compare(subject.room.member_count, number)
