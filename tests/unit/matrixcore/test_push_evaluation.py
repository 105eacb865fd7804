"""Each condition, each default rule, and that the shortcut for the defaults agrees with the evaluator."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from room_history import RoomHistory

from matrixcore.identifiers import UserId
from matrixcore.push_evaluation import (
    NO_PUSH,
    PushRoom,
    compile_ruleset,
    default_outcome,
    may_notify,
    push_fields,
)
from matrixcore.push_rules import (
    NO_USER_RULES,
    PushRule,
    RuleKind,
    UserPushRules,
    merged_ruleset,
    put_rule,
    set_actions,
    set_enabled,
)

ME, OTHER = UserId("@me:hs"), UserId("@other:hs")
GROUP = PushRoom(member_count=5, sender_level=0, notification_levels={})
PAIR = PushRoom(member_count=2, sender_level=0, notification_levels={})
MODERATED = PushRoom(member_count=5, sender_level=50, notification_levels={})


def event(event_type="m.room.message", content=None, **more):
    return {
        "event_id": "$e",
        "room_id": "!r:hs",
        "sender": OTHER,
        "type": event_type,
        "content": {"msgtype": "m.text", "body": "An example event."} if content is None else content,
        **more,
    }


def outcome(rules, an_event, room=GROUP, display_name=None):
    return compile_ruleset(ME, merged_ruleset(ME, rules)).evaluate(an_event, room, display_name)


def matches(condition, an_event, room=GROUP, display_name=None) -> bool:
    body = {"actions": ["notify"], "conditions": [condition]}
    return outcome(put_rule(NO_USER_RULES, RuleKind.OVERRIDE, "x", body), an_event, room, display_name).rule_id == "x"


@pytest.mark.parametrize(
    ("an_event", "room", "rule", "notify", "highlight", "sound"),
    [
        (event(), GROUP, "message", True, False, None),
        (event(), PAIR, "room_one_to_one", True, False, "default"),
        (event("m.room.encrypted", {}), GROUP, "encrypted", True, False, None),
        (event("m.room.encrypted", {}), PAIR, "encrypted_room_one_to_one", True, False, "default"),
        (event("m.call.invite", {}), PAIR, "call", True, False, "ring"),
        (event(content={"msgtype": "m.notice", "body": "x"}), PAIR, "suppress_notices", False, False, None),
        (
            event("m.room.member", {"membership": "invite"}, state_key=ME),
            GROUP,
            "invite_for_me",
            True,
            False,
            "default",
        ),
        (
            event("m.room.member", {"membership": "invite"}, state_key="@x:hs"),
            GROUP,
            "member_event",
            False,
            False,
            None,
        ),
        (event("m.room.member", {"membership": "join"}, state_key=ME), GROUP, "member_event", False, False, None),
        (event(content={"m.mentions": {"user_ids": [ME]}}), GROUP, "is_user_mention", True, True, "default"),
        (event(content={"m.mentions": {"user_ids": ["@x:hs"]}}), GROUP, "message", True, False, None),
        (event(content={"m.mentions": {"room": True}}), MODERATED, "is_room_mention", True, True, None),
        (event(content={"m.mentions": {"room": True}}), GROUP, "message", True, False, None),
        (event(content={"m.mentions": {"room": 1}}), MODERATED, "message", True, False, None),
        (event("m.room.tombstone", {}, state_key=""), GROUP, "tombstone", True, True, None),
        (event("m.room.tombstone", {}), GROUP, None, False, False, None),
        (event("m.reaction", {}), GROUP, "reaction", False, False, None),
        (event("m.room.server_acl", {}, state_key=""), GROUP, "room.server_acl", False, False, None),
        (event(content={"m.relates_to": {"rel_type": "m.replace"}}), GROUP, "suppress_edits", False, False, None),
        (event("m.room.topic", {"topic": "x"}, state_key=""), GROUP, None, False, False, None),
    ],
)
def test_default_rules(an_event, room, rule, notify, highlight, sound):
    result = outcome(NO_USER_RULES, an_event, room)
    assert result.rule_id == (rule and f".m.rule.{rule}")
    assert (result.notify, result.highlight, result.sound) == (notify, highlight, sound)


def test_master_silences_all_and_own_events_never_notify():
    rules = set_enabled(NO_USER_RULES, RuleKind.OVERRIDE, ".m.rule.master", True)
    assert not outcome(rules, event(content={"m.mentions": {"user_ids": [ME]}})).notify
    assert outcome(NO_USER_RULES, event(sender=ME)) is NO_PUSH


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("lunc?*", "Lunch plans", True),
        ("lunc?*", "LUNCH", True),
        ("lunc?*", " lunch", False),
        ("lunc?*", "lunc", False),
        ("lunc?*", None, False),
        ("*", 5, False),
        ("*", "", True),
        ("", "", True),
        ("a*b*c", "aXbbYc", True),
        ("a*b*c", "abcX", False),
        ("a**c", "ac", True),
        ("a.c", "abc", False),
        ("a*\n*", "a x\n", True),
        ("ab*ab", "ab", False),
    ],
)
def test_event_match_covers_the_whole_value(pattern, value, expected):
    condition = {"kind": "event_match", "key": "content.topic", "pattern": pattern}
    assert matches(condition, event("m.room.topic", {"topic": value})) is expected
    assert not matches(condition, event("m.room.topic", {}))


@pytest.mark.parametrize(
    ("pattern", "body", "expected"),
    [
        ("ex*ple", "An example event.", True),
        ("ex*ple", "exple", True),
        ("ex*ple", "An exciting triple-whammy", True),
        ("ex*ple", "complex people", False),
        ("cake", "I like CAKE!", True),
        ("cake", "cakes", False),
        ("cake", "cheesecake cake", True),
        ("cake", "cake_", False),
        ("ca?e", "a cave, they say", True),
        ("ca?e", "scave", False),
        ("été", "un Été chaud", True),
        ("@bob", "hi@bob", True),
        ("c*", "abc", False),
        ("c*", "ab c", True),
        ("*d", "abc d", True),
        ("a*c", "xa a b c", True),
        ("", "anything", False),
    ],
)
def test_event_match_on_the_body_finds_words(pattern, body, expected):
    condition = {"kind": "event_match", "key": "content.body", "pattern": pattern}
    assert matches(condition, event(content={"body": body})) is expected
    content_rule = put_rule(NO_USER_RULES, RuleKind.CONTENT, "c", {"actions": ["notify"], "pattern": pattern})
    assert (outcome(content_rule, event(content={"body": body})).rule_id == "c") is expected


def test_patterns_cannot_make_matching_slow():
    pattern = "a*" * 100 + "b"
    started = time.process_time()
    for key in ("content.body", "content.topic"):
        condition = {"kind": "event_match", "key": key, "pattern": pattern}
        assert not matches(condition, event(content={"body": "a " * 30_000, "topic": "a" * 60_000}))
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("key", "value", "content", "expected"),
    [
        (r"content.m\.federate", True, {"m.federate": True}, True),
        (r"content.m\.federate", True, {"m.federate": "true"}, False),
        (r"content.m\.federate", True, {"m.federate": 1}, False),
        ("content.m.federate", True, {"m.federate": True}, False),
        (r"content.m\\foo", None, {"m\\foo": None}, True),
        ("content.gone", None, {}, False),
        ("content.list", None, {"list": []}, False),
        (r"content.a\x", 3, {"a\\x": 3}, True),
    ],
)
def test_event_property_is(key, value, content, expected):
    assert matches({"kind": "event_property_is", "key": key, "value": value}, event(content=content)) is expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [(["#x", "#myroom:example.com"], True), ([":example.com"], False), ("#myroom:example.com", False), (None, False)],
)
def test_event_property_contains(values, expected):
    condition = {"kind": "event_property_contains", "key": "content.alt", "value": "#myroom:example.com"}
    assert matches(condition, event(content={"alt": values})) is expected


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ("5", True),
        ("==5", True),
        ("<6", True),
        ("<5", False),
        (">4", True),
        (">=5", True),
        ("<=4", False),
        ("2", False),
    ],
)
def test_room_member_count(bound, expected):
    assert matches({"kind": "room_member_count", "is": bound}, event()) is expected


def test_contains_display_name():
    condition = {"kind": "contains_display_name"}
    assert matches(condition, event(content={"body": "hello JANE doe!"}), display_name="Jane Doe")
    assert not matches(condition, event(content={"body": "hello janet"}), display_name="Jane")
    assert not matches(condition, event(content={"body": "hello"}), display_name="")
    assert not matches(condition, event(content={}), display_name="Jane")


def test_sender_notification_permission():
    condition = {"kind": "sender_notification_permission", "key": "room"}
    assert not matches(condition, event(), PushRoom(5, 49, {}))
    assert matches(condition, event(), PushRoom(5, 50, {}))
    assert matches(condition, event(), PushRoom(5, 10, {"room": 10}))
    assert may_notify(10, {"room": "10"})
    assert not may_notify(49, {"room": "odd"})
    assert may_notify(float("inf"), None)


def test_unknown_and_broken_conditions_match_nothing():
    assert not matches({"kind": "org.example.moon"}, event())
    for broken in ({"kind": "event_match", "key": "type"}, {"kind": "room_member_count", "is": "x"}, {}):
        rules = UserPushRules({RuleKind.OVERRIDE: (PushRule("x", ("notify",), (broken,)),)})
        assert outcome(rules, event()).rule_id == ".m.rule.message"


def test_kinds_are_tried_in_order():
    rules = NO_USER_RULES
    found = []
    for kind, rule_id, extra in (
        (RuleKind.UNDERRIDE, "u", {}),
        (RuleKind.SENDER, OTHER, {}),
        (RuleKind.ROOM, "!r:hs", {}),
        (RuleKind.CONTENT, "c", {"pattern": "example"}),
        (RuleKind.OVERRIDE, "o", {}),
    ):
        rules = put_rule(rules, kind, rule_id, {"actions": [], **extra})
        found.append(outcome(rules, event()).rule_id)
    assert found == ["u", OTHER, "!r:hs", "c", "o"]
    muted = set_enabled(rules, RuleKind.OVERRIDE, "o", False)
    assert outcome(muted, event()).rule_id == "c"


def test_tweaks():
    actions = ["notify", {"set_tweak": "highlight", "value": False}, {"set_tweak": "sound", "value": "x.wav"}]
    rules = set_actions(NO_USER_RULES, RuleKind.UNDERRIDE, ".m.rule.message", {"actions": actions})
    result = outcome(rules, event())
    assert (result.notify, result.highlight, result.sound) == (True, False, "x.wav")
    assert result.tweaks == {"highlight": False, "sound": "x.wav"}


def test_historical_actions_do_nothing():
    muted = put_rule(NO_USER_RULES, RuleKind.ROOM, "!r:hs", {"actions": ["dont_notify"]})
    empty = put_rule(NO_USER_RULES, RuleKind.ROOM, "!r:hs", {"actions": []})
    assert outcome(muted, event()) == outcome(empty, event())
    assert not outcome(muted, event()).notify
    both = put_rule(NO_USER_RULES, RuleKind.ROOM, "!r:hs", {"actions": ["dont_notify", "notify", "coalesce"]})
    assert outcome(both, event()).notify


def test_push_fields_of_an_event():
    room = RoomHistory("12")
    room.create()
    fields = push_fields(room.events["$creator_join"])
    assert fields["room_id"] == "!create"
    assert fields["state_key"] == fields["sender"]


_contents = st.fixed_dictionaries(
    {},
    optional={
        "msgtype": st.sampled_from(["m.text", "m.notice", "M.Notice", 5]),
        "membership": st.sampled_from(["join", "invite", "leave", None]),
        "m.mentions": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {},
                optional={
                    "room": st.sampled_from([True, False, 1, "true"]),
                    "user_ids": st.one_of(st.lists(st.sampled_from([ME, OTHER, "@x:hs", 3])), st.just(ME)),
                },
            ),
        ),
        "m.relates_to": st.sampled_from([{"rel_type": "m.replace"}, {"rel_type": "m.thread"}, 7]),
        "body": st.just("@me:hs me @room"),
    },
)
_types = st.sampled_from(
    [
        "m.room.message",
        "m.room.encrypted",
        "m.room.member",
        "m.reaction",
        "m.room.tombstone",
        "m.room.server_acl",
        "m.call.invite",
        "M.Room.Message",
        "org.example",
    ]
)


@settings(max_examples=400, deadline=None)
@given(_types, _contents, st.sampled_from([None, "", ME, "@x:hs"]), st.integers(1, 3), st.sampled_from([0, 50]))
def test_the_default_outcome_is_what_the_evaluator_says_for_each_user(event_type, content, state_key, count, level):
    fields = event(event_type, content) | ({} if state_key is None else {"state_key": state_key})
    room = PushRoom(count, level, {})
    default = default_outcome(event_type, state_key, OTHER, content, count, lambda: may_notify(level, {}))
    for user_id in (ME, UserId("@x:hs"), UserId("@third:hs")):
        exact = compile_ruleset(user_id, merged_ruleset(user_id, NO_USER_RULES)).evaluate(fields, room)
        if user_id in default.mentioned_user_ids:
            assert (exact.notify, exact.highlight) == (True, True)
        elif user_id == default.invitee:
            assert (exact.notify, exact.highlight, exact.rule_id) == (True, False, ".m.rule.invite_for_me")
        else:
            assert (default.notify, default.highlight_all) == (exact.notify, exact.highlight)
            assert default.rule_id == exact.rule_id
            assert default.one_to_one == (exact.rule_id or "").endswith("_one_to_one")


def test_the_sender_is_not_mentioned_by_themselves():
    content = {"m.mentions": {"user_ids": [OTHER, ME]}}
    default = default_outcome("m.room.message", None, OTHER, content, 3, lambda: False)
    assert default.mentioned_user_ids == {ME}
