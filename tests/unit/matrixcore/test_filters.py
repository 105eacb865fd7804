"""Filters: what parses, what is refused, and what each part lets through."""

import pytest

from matrixcore.filters import (
    MAX_LIMIT,
    EventFields,
    Filter,
    InvalidFilter,
    RoomEventFilter,
    parse_filter,
    parse_room_event_filter,
)

ROOM, OTHER_ROOM = "!a:hs", "!b:hs"
MESSAGE = ("m.room.message", "@a:hs", ROOM, {"body": "x"})


def allows(body, event_type="m.room.message", sender="@a:hs", room_id=ROOM, content=None) -> bool:
    return parse_room_event_filter(body).allows_event(event_type, sender, room_id, content or {})


def test_an_empty_filter_allows_everything():
    parsed = parse_filter({})
    assert parsed == Filter()
    assert parsed.room.timeline.allows_everything
    assert parsed.room.timeline.allows_event(*MESSAGE)
    assert parsed.presence.allows("m.presence", "@a:hs")
    assert not parsed.federation_format


def test_the_example_of_the_specification():
    parsed = parse_filter(
        {
            "event_fields": ["type", "content", "sender"],
            "event_format": "client",
            "presence": {"not_senders": ["@alice:example.com"], "types": ["m.presence"]},
            "room": {
                "ephemeral": {
                    "not_rooms": ["!726s6s6q:example.com"],
                    "not_senders": ["@spam:example.com"],
                    "types": ["m.receipt", "m.typing"],
                },
                "state": {"not_rooms": ["!726s6s6q:example.com"], "types": ["m.room.*"]},
                "timeline": {
                    "limit": 10,
                    "not_rooms": ["!726s6s6q:example.com"],
                    "not_senders": ["@spam:example.com"],
                    "types": ["m.room.message"],
                },
            },
        }
    )
    assert parsed.presence.allows("m.presence", "@bob:example.com")
    assert not parsed.presence.allows("m.presence", "@alice:example.com")
    assert parsed.room.state.allows_event("m.room.name", "@x:hs", ROOM, {})
    assert not parsed.room.state.allows_event("m.space.child", "@x:hs", ROOM, {})
    assert not parsed.room.state.allows_event("m.room.name", "@x:hs", "!726s6s6q:example.com", {})
    assert parsed.room.timeline.limit == 10
    assert parsed.event_fields is not None


@pytest.mark.parametrize(
    ("types", "not_types", "event_type", "expected"),
    [
        (["m.room.message"], None, "m.room.message", True),
        (["m.room.message"], None, "m.room.messages", False),
        (["m.room.*"], None, "m.room.topic", True),
        (["m.room.*"], None, "m_room_topic", False),
        (["*"], None, "anything", True),
        (["a*b*c"], None, "axxbyyc", True),
        (["a*b*c"], None, "axxbyy", False),
        (["m.?oom"], None, "m.room", False),
        (["M.ROOM"], None, "m.room", False),
        ([], None, "m.room.message", False),
        (None, ["m.room.*"], "m.room.topic", False),
        (["m.room.message"], ["m.room.message"], "m.room.message", False),
        (None, [], "m.room.message", True),
    ],
)
def test_types(types, not_types, event_type, expected):
    body = {"types": types, "not_types": not_types}
    assert allows({key: value for key, value in body.items() if value is not None}, event_type) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"senders": ["@a:hs"]}, True),
        ({"senders": ["@b:hs"]}, False),
        ({"senders": []}, False),
        ({"not_senders": ["@a:hs"]}, False),
        ({"senders": ["@a:hs"], "not_senders": ["@a:hs"]}, False),
        ({"rooms": [ROOM]}, True),
        ({"rooms": [OTHER_ROOM]}, False),
        ({"rooms": []}, False),
        ({"not_rooms": [ROOM]}, False),
        ({"rooms": [ROOM], "not_rooms": [ROOM]}, False),
        ({"contains_url": True}, False),
        ({"contains_url": False}, True),
        ({"unknown": 5}, True),
    ],
)
def test_senders_rooms_and_urls(body, expected):
    assert allows(body) is expected
    assert parse_room_event_filter(body).allows_everything is (set(body) == {"unknown"})


def test_contains_url():
    assert allows({"contains_url": True}, content={"url": "mxc://hs/x"})
    assert not allows({"contains_url": False}, content={"url": "mxc://hs/x"})


def test_related_by():
    children = [("m.thread", "@a:hs"), ("m.annotation", "@b:hs")]
    for body, expected in (
        ({}, True),
        ({"related_by_rel_types": ["m.thread"]}, True),
        ({"related_by_rel_types": ["m.replace"]}, False),
        ({"related_by_senders": ["@b:hs"]}, True),
        ({"related_by_rel_types": ["m.thread"], "related_by_senders": ["@b:hs"]}, False),
        ({"related_by_rel_types": ["m.thread"], "related_by_senders": ["@a:hs"]}, True),
    ):
        parsed = parse_room_event_filter(body)
        assert parsed.allows_relations(children) is expected
        assert parsed.needs_relations is bool(body)
    assert parse_room_event_filter({"related_by_senders": []}).allows_relations(children) is False


def test_limits():
    assert parse_room_event_filter({}).limit_or(10) == 10
    assert parse_room_event_filter({"limit": 5}).limit_or(10) == 5
    assert parse_room_event_filter({"limit": 0}).limit_or(10) == 0
    assert parse_room_event_filter({"limit": 10**9}).limit == MAX_LIMIT


def test_switches():
    parsed = parse_filter(
        {
            "event_format": "federation",
            "room": {
                "rooms": [ROOM],
                "not_rooms": [OTHER_ROOM],
                "include_leave": True,
                "state": {"lazy_load_members": True, "include_redundant_members": True},
                "timeline": {"unread_thread_notifications": True},
            },
        }
    )
    assert parsed.federation_format
    assert parsed.lazy_load_members
    assert parsed.unread_thread_notifications
    assert parsed.room.include_leave
    assert parsed.room.state.include_redundant_members
    assert parsed.room.allows_room(ROOM)
    assert not parsed.room.allows_room(OTHER_ROOM)
    assert not parsed.room.allows_room("!c:hs")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "filter"),
        ({"room": []}, "room"),
        ({"room": None}, "room"),
        ({"room": {"timeline": 5}}, "room.timeline"),
        ({"room": {"timeline": {"limit": "10"}}}, "room.timeline.limit"),
        ({"room": {"timeline": {"limit": -1}}}, "room.timeline.limit"),
        ({"room": {"timeline": {"limit": True}}}, "room.timeline.limit"),
        ({"room": {"timeline": {"limit": 1.5}}}, "room.timeline.limit"),
        ({"room": {"state": {"types": "m.room"}}}, "room.state.types"),
        ({"room": {"state": {"types": [1]}}}, "room.state.types"),
        (
            {"room": {"state": {"not_types": ["*"] + [f"{n}*" for n in range(200)]}}},
            "room.state.not_types",
        ),
        ({"room": {"ephemeral": {"rooms": ["a:hs"]}}}, "room.ephemeral.rooms"),
        ({"room": {"account_data": {"senders": ["alice"]}}}, "room.account_data.senders"),
        ({"room": {"timeline": {"lazy_load_members": "yes"}}}, "room.timeline.lazy_load_members"),
        ({"room": {"include_leave": 1}}, "room.include_leave"),
        ({"presence": {"not_senders": {}}}, "presence.not_senders"),
        ({"account_data": {"types": [None]}}, "account_data.types"),
        ({"event_format": "xml"}, "event_format"),
        ({"event_format": 1}, "event_format"),
        ({"event_fields": "content"}, "event_fields"),
        ({"event_fields": ["a." * 200]}, "event_fields"),
    ],
)
def test_what_is_refused_names_its_field(body, field):
    with pytest.raises(InvalidFilter) as refusal:
        parse_filter(body)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["type"], {"type": "m.room.message"}),
        (["content.body"], {"content": {"body": "x"}}),
        (["content.body", "content"], {"content": {"body": "x", "m.relates_to": {"event_id": "$a", "key": 1}}}),
        (["content", "content.body"], {"content": {"body": "x", "m.relates_to": {"event_id": "$a", "key": 1}}}),
        ([r"content.m\.relates_to.key", "sender"], {"content": {"m.relates_to": {"key": 1}}, "sender": "@a:hs"}),
        (["content.gone", "gone", "type.deeper"], {}),
        ([], {}),
    ],
)
def test_event_fields(paths, expected):
    event = {
        "type": "m.room.message",
        "sender": "@a:hs",
        "content": {"body": "x", "m.relates_to": {"event_id": "$a", "key": 1}},
    }
    assert EventFields.of(paths).project(event) == expected


def test_a_filter_is_a_value():
    assert hash(parse_room_event_filter({"rooms": [ROOM]})) == hash(RoomEventFilter(rooms=frozenset({ROOM})))
