"""Requests of sliding sync in both forms, and what is refused of them. Spec: MSC4186 §Request Body, Appendix."""

from typing import Any

import pytest

from matrixcore.identifiers import UserId
from services.sync.sliding.parsing import format_to_device_token, parse_request
from services.sync.sliding.request import (
    MAX_ELEMENTS,
    MAX_LISTS,
    MAX_SUBSCRIPTIONS,
    MAX_TIMELINE_LIMIT,
    MAX_TIMEOUT_MS,
    Form,
    RoomScope,
    SlidingRequest,
)
from services.sync.sliding.required_state import MEMBER, Element, from_include
from tessera.http.errors import MatrixError

ME = UserId("@me:here.org")


def parse(body: dict[str, Any], form: Form = Form.EXPERIMENTAL, **query: str) -> SlidingRequest:
    return parse_request(form, ME, "D", query, body)


def test_the_experimental_form() -> None:
    state = [["m.room.create", ""], [MEMBER, "$LAZY"], [MEMBER, "$ME"], ["*", "*"]]
    filters = {"is_dm": True, "is_invite": False, "room_types": [None, "m.space"], "not_tags": ["u"], "later": 1}
    asked = parse(
        {
            "conn_id": "main",
            "txn_id": "t",
            "lists": {
                "a": {"ranges": [[0, 9], [20, 29]], "timeline_limit": 5, "required_state": state, "filters": filters}
            },
            "room_subscriptions": {"!r:here.org": {"timeline_limit": 9_999}, "nonsense": {"timeline_limit": 1}},
        },
        pos="p",
        timeout="30000",
        set_presence="offline",
    )
    assert (asked.pos, asked.timeout_ms, asked.conn_id, asked.txn_id) == ("p", 30_000, "main", "t")
    assert asked.set_presence == "offline"
    rule = asked.lists["a"]
    assert rule.ranges == ((0, 9), (20, 29))
    elements = [Element("m.room.create", ""), Element(MEMBER, ME), Element(None, None)]
    assert rule.wish.required_state == from_include(elements, lazy_members=True)
    assert (rule.filter.is_dm, rule.filter.is_invite, rule.filter.is_encrypted) == (True, False, None)
    assert rule.filter.room_types == {None, "m.space"}
    assert rule.filter.not_tags == {"u"}
    assert [wish.timeline_limit for wish in asked.subscriptions.values()] == [MAX_TIMELINE_LIMIT]


def test_the_accepted_form_has_everything_in_its_body() -> None:
    required = {"include": [{"type": "m.room.name"}, {}], "exclude": [{"state_key": "x"}], "lazy_members": True}
    rule = {"timeline_limit": 1, "required_state": required, "range": [0, 3], "filters": {"is_invited": True}}
    asked = parse({"pos": "p", "timeout": 10**9, "lists": {"a": rule}}, Form.ACCEPTED, pos="ignored", timeout="1")
    assert (asked.pos, asked.timeout_ms) == ("p", MAX_TIMEOUT_MS)
    found = asked.lists["a"]
    assert found.ranges == ((0, 3),)
    assert found.filter.is_invite is True
    include = [Element("m.room.name", None), Element(None, None)]
    assert found.wish.required_state == from_include(include, [Element(None, "x")], lazy_members=True)
    assert parse({"lists": {"a": {"timeline_limit": 1, "required_state": {}}}}, Form.ACCEPTED).lists["a"].ranges is None


def test_extensions() -> None:
    asked = parse(
        {
            "extensions": {
                "to_device": {"enabled": True, "since": format_to_device_token(7), "limit": 5},
                "e2ee": {"enabled": True},
                "account_data": {"enabled": True},
                "receipts": {"enabled": True, "lists": ["a"], "rooms": ["*"]},
                "typing": {"enabled": False},
                "unheard_of": {"enabled": True},
            }
        }
    ).extensions
    assert asked.to_device is not None
    assert (asked.to_device.since, asked.to_device.limit, asked.e2ee) == (7, 5, True)
    assert asked.account_data == RoomScope()
    assert asked.receipts == RoomScope(frozenset({"a"}), None)
    assert asked.typing is None
    assert parse({}).extensions.to_device is None


RULE = {"timeline_limit": 1, "required_state": []}


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({"lists": []}, "M_BAD_JSON"),
        ({"lists": {"a": 1}}, "M_BAD_JSON"),
        ({"lists": {"": RULE}}, "M_INVALID_PARAM"),
        ({"lists": {str(number): RULE for number in range(MAX_LISTS + 1)}}, "M_INVALID_PARAM"),
        ({"lists": {"a": {**RULE, "ranges": [[0, 10**30]]}}}, "M_INVALID_PARAM"),
        ({"lists": {"a": {**RULE, "ranges": [[5, 1]]}}}, "M_INVALID_PARAM"),
        ({"lists": {"a": {**RULE, "ranges": [[0]]}}}, "M_INVALID_PARAM"),
        ({"lists": {"a": {**RULE, "ranges": [[0, 1]] * 21}}}, "M_INVALID_PARAM"),
        ({"lists": {"a": {**RULE, "timeline_limit": -1}}}, "M_INVALID_PARAM"),
        ({"lists": {"a": {**RULE, "timeline_limit": True}}}, "M_INVALID_PARAM"),
        ({"lists": {"a": {**RULE, "required_state": [["a"]]}}}, "M_BAD_JSON"),
        ({"lists": {"a": {**RULE, "required_state": [["a", "b"]] * (MAX_ELEMENTS + 1)}}}, "M_INVALID_PARAM"),
        ({"lists": {"a": {**RULE, "filters": {"is_dm": "yes"}}}}, "M_BAD_JSON"),
        ({"lists": {"a": {**RULE, "filters": {"tags": [1]}}}}, "M_BAD_JSON"),
        ({"room_subscriptions": {f"!{n}:a": RULE for n in range(MAX_SUBSCRIPTIONS + 1)}}, "M_INVALID_PARAM"),
        ({"extensions": {"typing": True}}, "M_BAD_JSON"),
        ({"extensions": {"to_device": {"enabled": True, "since": "x"}}}, "M_INVALID_PARAM"),
        ({"conn_id": "c" * 256}, "M_INVALID_PARAM"),
        ({"conn_id": 1}, "M_INVALID_PARAM"),
    ],
)
def test_what_is_refused(body: dict[str, Any], errcode: str) -> None:
    with pytest.raises(MatrixError) as caught:
        parse(body)
    assert (caught.value.status, caught.value.errcode) == (400, errcode)


@pytest.mark.parametrize("query", [{"timeout": "-1"}, {"timeout": "soon"}, {"set_presence": "busy"}])
def test_parameters_that_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(MatrixError, match="must be"):
        parse({}, **query)


@pytest.mark.parametrize("rule", [{"required_state": {}}, {"timeline_limit": 1}])
def test_the_accepted_form_insists_on_what_is_wanted(rule: dict[str, Any]) -> None:
    with pytest.raises(MatrixError) as caught:
        parse({"lists": {"a": rule}}, Form.ACCEPTED)
    assert caught.value.errcode == "M_MISSING_PARAM"
