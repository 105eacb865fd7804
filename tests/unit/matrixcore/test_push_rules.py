"""A user's rules: defaults, own rules, changes, and what is refused."""

import json

import pytest

from matrixcore.identifiers import UserId
from matrixcore.push_rules import (
    MAX_ROOM_OR_SENDER_RULES,
    NO_USER_RULES,
    InvalidPushRule,
    PushRule,
    PushRuleNotFound,
    RelatedRuleNotFound,
    RuleKind,
    UserPushRules,
    delete_rule,
    find_rule,
    from_stored_form,
    merged_ruleset,
    parse_kind,
    put_rule,
    ruleset_json,
    set_actions,
    set_enabled,
    stored_form,
)

ALICE = UserId("@alice:hs")
NOTIFY = {"actions": ["notify"]}


def ids(rules, kind):
    return [rule.rule_id for rule in merged_ruleset(ALICE, rules)[kind]]


def own_ids(rules, kind):
    return [rule.rule_id for rule in rules.own.get(kind, ())]


def room_rules(*names):
    rules = NO_USER_RULES
    for name in reversed(names):
        rules = put_rule(rules, RuleKind.ROOM, name, NOTIFY)
    return rules


def test_the_defaults_are_those_of_the_specification_in_its_order():
    body = ruleset_json(merged_ruleset(ALICE, NO_USER_RULES))
    assert {kind: [rule["rule_id"].removeprefix(".m.rule.") for rule in rules] for kind, rules in body.items()} == {
        "override": [
            "master",
            "suppress_notices",
            "invite_for_me",
            "member_event",
            "is_user_mention",
            "is_room_mention",
            "tombstone",
            "reaction",
            "room.server_acl",
            "suppress_edits",
        ],
        "content": [],
        "room": [],
        "sender": [],
        "underride": ["call", "encrypted_room_one_to_one", "room_one_to_one", "message", "encrypted"],
    }
    by_id = {rule["rule_id"]: rule for rules in body.values() for rule in rules}
    assert by_id[".m.rule.master"] == {
        "rule_id": ".m.rule.master",
        "default": True,
        "enabled": False,
        "conditions": [],
        "actions": [],
    }
    assert by_id[".m.rule.is_user_mention"] == {
        "rule_id": ".m.rule.is_user_mention",
        "default": True,
        "enabled": True,
        "conditions": [
            {"kind": "event_property_contains", "key": "content.m\\.mentions.user_ids", "value": "@alice:hs"}
        ],
        "actions": ["notify", {"set_tweak": "sound", "value": "default"}, {"set_tweak": "highlight"}],
    }
    assert by_id[".m.rule.invite_for_me"]["conditions"][2] == {
        "kind": "event_match",
        "key": "state_key",
        "pattern": "@alice:hs",
    }
    assert by_id[".m.rule.call"]["actions"] == ["notify", {"set_tweak": "sound", "value": "ring"}]
    json.dumps(body)  # nothing but JSON


def test_own_rules_come_before_the_defaults_but_after_master():
    rules = put_rule(NO_USER_RULES, RuleKind.OVERRIDE, "mine", NOTIFY)
    assert ids(rules, RuleKind.OVERRIDE)[:3] == [".m.rule.master", "mine", ".m.rule.suppress_notices"]
    rules = put_rule(rules, RuleKind.UNDERRIDE, "mine", NOTIFY)
    assert ids(rules, RuleKind.UNDERRIDE)[:2] == ["mine", ".m.rule.call"]


def test_a_new_rule_is_the_most_important_and_enabled():
    rules = room_rules("b")
    rules = put_rule(rules, RuleKind.ROOM, "a", NOTIFY)
    assert own_ids(rules, RuleKind.ROOM) == ["a", "b"]
    assert find_rule(merged_ruleset(ALICE, rules), RuleKind.ROOM, "a") == PushRule("a", ("notify",))


@pytest.mark.parametrize(
    ("place", "order"),
    [
        ({"before": "b"}, ["a", "new", "b", "c"]),
        ({"after": "b"}, ["a", "b", "new", "c"]),
        ({"after": "c"}, ["a", "b", "c", "new"]),
        ({"before": "c", "after": "a"}, ["a", "b", "new", "c"]),
    ],
)
def test_before_and_after(place, order):
    rules = room_rules("a", "b", "c")
    assert own_ids(put_rule(rules, RuleKind.ROOM, "new", NOTIFY, **place), RuleKind.ROOM) == order


def test_replacing_keeps_the_place_and_the_switch_unless_told_otherwise():
    rules = set_enabled(room_rules("a", "b", "c"), RuleKind.ROOM, "b", False)
    replaced = put_rule(rules, RuleKind.ROOM, "b", {"actions": []})
    assert own_ids(replaced, RuleKind.ROOM) == ["a", "b", "c"]
    assert replaced.own[RuleKind.ROOM][1] == PushRule("b", (), enabled=False)
    moved = put_rule(rules, RuleKind.ROOM, "c", NOTIFY, before="a")
    assert own_ids(moved, RuleKind.ROOM) == ["c", "a", "b"]


@pytest.mark.parametrize("name", ["unknown", ".m.rule.message"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_place_beside_an_unknown_or_default_rule_is_refused(side, name):
    with pytest.raises(RelatedRuleNotFound):
        put_rule(NO_USER_RULES, RuleKind.UNDERRIDE, "new", NOTIFY, **{side: name})


@pytest.mark.parametrize(
    ("kind", "rule_id", "body", "field"),
    [
        (RuleKind.ROOM, ".m.rule.mine", NOTIFY, "ruleId"),
        (RuleKind.ROOM, "", NOTIFY, "ruleId"),
        (RuleKind.ROOM, "a/b", NOTIFY, "ruleId"),
        (RuleKind.ROOM, "a\\b", NOTIFY, "ruleId"),
        (RuleKind.ROOM, "x" * 513, NOTIFY, "ruleId"),
        (RuleKind.ROOM, "a", {}, "actions"),
        (RuleKind.ROOM, "a", {"actions": "notify"}, "actions"),
        (RuleKind.ROOM, "a", {"actions": ["explode"]}, "actions"),
        (RuleKind.ROOM, "a", {"actions": [{"value": 1}]}, "actions"),
        (RuleKind.ROOM, "a", {"actions": [1]}, "actions"),
        (RuleKind.ROOM, "a", {"actions": ["notify"] * 21}, "actions"),
        (RuleKind.CONTENT, "a", NOTIFY, "pattern"),
        (RuleKind.CONTENT, "a", {**NOTIFY, "pattern": 5}, "pattern"),
        (RuleKind.CONTENT, "a", {**NOTIFY, "pattern": "x" * 257}, "pattern"),
        (RuleKind.OVERRIDE, "a", {**NOTIFY, "conditions": {}}, "conditions"),
        (RuleKind.OVERRIDE, "a", {**NOTIFY, "conditions": [{}]}, "conditions"),
        (RuleKind.OVERRIDE, "a", {**NOTIFY, "conditions": [{"kind": "event_match", "key": "type"}]}, "pattern"),
        (RuleKind.OVERRIDE, "a", {**NOTIFY, "conditions": [{"kind": "event_match", "pattern": "x"}]}, "conditions"),
        (
            RuleKind.OVERRIDE,
            "a",
            {**NOTIFY, "conditions": [{"kind": "event_property_is", "key": "x", "value": []}]},
            "conditions",
        ),
        (RuleKind.OVERRIDE, "a", {**NOTIFY, "conditions": [{"kind": "room_member_count", "is": "~2"}]}, "conditions"),
        (RuleKind.OVERRIDE, "a", {**NOTIFY, "conditions": [{"kind": "odd"}] * 51}, "conditions"),
    ],
)
def test_what_is_refused_names_its_field(kind, rule_id, body, field):
    with pytest.raises(InvalidPushRule) as refusal:
        put_rule(NO_USER_RULES, kind, rule_id, body)
    assert refusal.value.field == field


def test_unknown_conditions_and_historical_actions_are_kept():
    body = {"actions": ["dont_notify", "coalesce", "notify"], "conditions": [{"kind": "org.example.moon", "phase": 1}]}
    rules = put_rule(NO_USER_RULES, RuleKind.OVERRIDE, "moon", body)
    (rule,) = rules.own[RuleKind.OVERRIDE]
    assert rule.actions == ("dont_notify", "coalesce", "notify")
    assert rule.conditions == ({"kind": "org.example.moon", "phase": 1},)


def test_the_number_of_rules_is_bounded():
    full = UserPushRules({RuleKind.ROOM: tuple(PushRule(str(n), ()) for n in range(MAX_ROOM_OR_SENDER_RULES))})
    with pytest.raises(InvalidPushRule):
        put_rule(full, RuleKind.ROOM, "one more", NOTIFY)
    assert len(put_rule(full, RuleKind.ROOM, "7", NOTIFY).own[RuleKind.ROOM]) == MAX_ROOM_OR_SENDER_RULES


def test_default_rules_can_be_switched_and_changed_but_not_deleted():
    rules = set_enabled(NO_USER_RULES, RuleKind.OVERRIDE, ".m.rule.master", True)
    rules = set_actions(rules, RuleKind.UNDERRIDE, ".m.rule.message", {"actions": ["dont_notify"]})
    merged = merged_ruleset(ALICE, rules)
    assert find_rule(merged, RuleKind.OVERRIDE, ".m.rule.master").enabled
    message = find_rule(merged, RuleKind.UNDERRIDE, ".m.rule.message")
    assert message.enabled
    assert message.default
    assert message.actions == ("dont_notify",)
    with pytest.raises(InvalidPushRule):
        delete_rule(rules, RuleKind.UNDERRIDE, ".m.rule.message")


def test_what_does_not_exist_is_not_found():
    for change in (
        lambda: delete_rule(NO_USER_RULES, RuleKind.ROOM, "a"),
        lambda: set_enabled(NO_USER_RULES, RuleKind.ROOM, "a", True),
        lambda: set_actions(NO_USER_RULES, RuleKind.ROOM, ".m.rule.message", NOTIFY),
    ):
        with pytest.raises(PushRuleNotFound):
            change()
    with pytest.raises(InvalidPushRule):
        parse_kind("overrride")
    assert find_rule(merged_ruleset(ALICE, NO_USER_RULES), RuleKind.ROOM, "a") is None


def test_own_rules_can_be_changed_and_deleted_without_touching_the_value_before():
    rules = room_rules("a", "b")
    changed = set_actions(rules, RuleKind.ROOM, "a", {"actions": []})
    assert rules.own[RuleKind.ROOM][0].actions == ("notify",)
    assert changed.own[RuleKind.ROOM][0].actions == ()
    assert own_ids(delete_rule(changed, RuleKind.ROOM, "a"), RuleKind.ROOM) == ["b"]


def test_stored_form_round_trip():
    rules = room_rules("a", "b")
    rules = put_rule(rules, RuleKind.CONTENT, "cake", {"actions": ["notify"], "pattern": "cake*lie"})
    rules = put_rule(rules, RuleKind.OVERRIDE, "o", {"actions": [], "conditions": [{"kind": "contains_display_name"}]})
    rules = set_enabled(rules, RuleKind.ROOM, "b", False)
    rules = set_enabled(rules, RuleKind.OVERRIDE, ".m.rule.reaction", False)
    rules = set_actions(rules, RuleKind.UNDERRIDE, ".m.rule.call", {"actions": []})
    assert from_stored_form(json.loads(json.dumps(stored_form(rules)))) == rules
    assert from_stored_form({}) == NO_USER_RULES
