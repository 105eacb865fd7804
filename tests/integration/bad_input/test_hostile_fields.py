"""JSON of the right shape with fields of the wrong type or beyond a limit: the answer names the field."""

from typing import Any

import pytest
from target_server import Target

BAD = ("M_BAD_JSON", "M_INVALID_PARAM")
GIANT = "x" * 300_000

# method, path, body, what the message must name
FIELDS: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "/createRoom", {"name": 1}, "name"),
    ("POST", "/createRoom", {"topic": []}, "topic"),
    ("POST", "/createRoom", {"preset": "open"}, "preset"),
    ("POST", "/createRoom", {"preset": 1}, "preset"),
    ("POST", "/createRoom", {"visibility": 1}, "visibility"),
    ("POST", "/createRoom", {"room_alias_name": 1}, "room_alias_name"),
    ("POST", "/createRoom", {"invite": "@a:b"}, "invite"),
    ("POST", "/createRoom", {"invite": [1]}, "invite"),
    ("POST", "/createRoom", {"invite": ["nobody"]}, "invite"),
    ("POST", "/createRoom", {"initial_state": {}}, "initial_state"),
    ("POST", "/createRoom", {"initial_state": [1]}, "initial_state"),
    ("POST", "/createRoom", {"initial_state": [{"type": 1, "content": {}}]}, "type"),
    ("POST", "/createRoom", {"initial_state": [{"type": "a", "content": 1}]}, "content"),
    ("POST", "/createRoom", {"initial_state": [{"type": "a", "state_key": 1, "content": {}}]}, "state_key"),
    ("POST", "/createRoom", {"creation_content": []}, "creation_content"),
    ("POST", "/createRoom", {"power_level_content_override": 1}, "power_level_content_override"),
    ("POST", "/createRoom", {"is_direct": "yes"}, "is_direct"),
    ("POST", "/createRoom", {"room_version": 11}, "room_version"),
    ("POST", "/rooms/{room}/invite", {"user_id": 1}, "user_id"),
    ("POST", "/rooms/{room}/invite", {"user_id": "bob"}, "user_id"),
    ("POST", "/rooms/{room}/invite", {"user_id": "@" + "a" * 300 + ":b"}, "user_id"),
    ("POST", "/rooms/{room}/kick", {"user_id": {}}, "user_id"),
    ("POST", "/rooms/{room}/ban", {"user_id": "@a:b", "reason": 1}, "reason"),
    ("PUT", "/rooms/{room}/redact/{event}/bad", {"reason": 1}, "reason"),
    ("PUT", "/rooms/{room}/typing/{user}", {"typing": "yes"}, "typing"),
    ("PUT", "/rooms/{room}/typing/{user}", {"typing": True, "timeout": "long"}, "timeout"),
    ("POST", "/rooms/{room}/receipt/m.read/{event}", {"thread_id": 1}, "thread_id"),
    ("POST", "/rooms/{room}/receipt/m.read/{event}", {"thread_id": ""}, "thread_id"),
    ("POST", "/rooms/{room}/read_markers", {"m.fully_read": 1}, "m.fully_read"),
    ("PUT", "/user/{user}/rooms/{room}/tags/u.work", {"order": "first"}, "order"),
    ("POST", "/user/{user}/filter", {"room": []}, "room"),
    ("POST", "/user/{user}/filter", {"room": {"timeline": {"limit": "many"}}}, "limit"),
    ("POST", "/user/{user}/filter", {"room": {"rooms": "!a:b"}}, "rooms"),
    ("POST", "/user/{user}/filter", {"event_fields": [1]}, "event_fields"),
    ("POST", "/user/{user}/filter", {"presence": {"types": {}}}, "types"),
    ("PUT", "/profile/{user}/displayname", {"displayname": 1}, "displayname"),
    ("PUT", "/profile/{user}/displayname", {"displayname": GIANT}, "displayname"),
    ("PUT", "/profile/{user}/avatar_url", {"avatar_url": []}, "avatar_url"),
    ("PUT", "/presence/{user}/status", {"presence": "asleep"}, "presence"),
    ("PUT", "/presence/{user}/status", {"presence": "online", "status_msg": 1}, "status_msg"),
    ("PUT", "/pushrules/global/override/mine", {"actions": "notify"}, "actions"),
    ("PUT", "/pushrules/global/override/mine", {"actions": [], "conditions": {}}, "conditions"),
    ("PUT", "/pushrules/global/content/mine", {"actions": ["notify"], "pattern": 1}, "pattern"),
    ("PUT", "/pushrules/global/override/.m.rule.master/enabled", {"enabled": 1}, "enabled"),
    ("POST", "/pushers/set", {"kind": 1, "app_id": "a", "pushkey": "b"}, "kind"),
    ("POST", "/pushers/set", {"kind": "http", "app_id": 1, "pushkey": "b"}, "app_id"),
    ("POST", "/keys/upload", {"device_keys": 1}, "device_keys"),
    ("POST", "/keys/upload", {"one_time_keys": []}, "one_time_keys"),
    ("POST", "/keys/query", {"device_keys": []}, "device_keys"),
    ("POST", "/keys/query", {"device_keys": {"{user}": "all"}}, "device_keys"),
    ("POST", "/keys/claim", {"one_time_keys": []}, "one_time_keys"),
    ("PUT", "/sendToDevice/m.x/wrong", {"messages": []}, "messages"),
    ("POST", "/room_keys/version", {"algorithm": 1, "auth_data": {}}, "algorithm"),
    ("POST", "/room_keys/version", {"algorithm": "a", "auth_data": 1}, "auth_data"),
    ("PUT", "/devices/{device}", {"display_name": 1}, "display_name"),
    ("POST", "/delete_devices", {"devices": "all"}, "devices"),
    ("POST", "/publicRooms", {"limit": "many"}, "limit"),
    ("POST", "/publicRooms", {"filter": 1}, "filter"),
    ("POST", "/publicRooms", {"filter": {"generic_search_term": 1}}, "generic_search_term"),
    ("POST", "/user_directory/search", {"search_term": 1}, "search_term"),
    ("POST", "/user_directory/search", {"search_term": "a", "limit": "many"}, "limit"),
    ("PUT", "/directory/room/%23new:test.example", {"room_id": 1}, "room_id"),
    ("PUT", "/directory/list/room/{room}", {"visibility": 1}, "visibility"),
    ("POST", "/login", {"type": 1}, "type"),
    ("POST", "/login", {"type": "m.login.password", "identifier": 1, "password": "x"}, "identifier"),
    ("POST", "/login", {"type": "m.login.password", "user": "a", "password": 1}, "password"),
    ("POST", "/register", {"username": 1, "auth": {"type": "m.login.dummy"}}, "username"),
    ("POST", "/register", {"username": "a", "password": 1, "auth": {"type": "m.login.dummy"}}, "password"),
    ("POST", "/register", {"username": "a", "password": "b", "auth": 1}, "auth"),
    ("POST", "/refresh", {"refresh_token": 1}, "refresh_token"),
    ("POST", "/account/password", {"new_password": 1}, "new_password"),
    ("POST", "/rooms/{room}/report/{event}", {"reason": 1}, "reason"),
    ("POST", "/rooms/{room}/report/{event}", {"score": "bad"}, "score"),
    ("PUT", "/rooms/{room}/state/m.room.member/{user}", {"membership": 1}, "membership"),
    ("PUT", "/rooms/{room}/send/m.room.redaction/wrong", {"redacts": 1}, "redacts"),
]


async def test_the_answer_names_the_field(target: Target) -> None:
    wrong: list[str] = []
    for method, path, body, field in FIELDS:
        filled = {key: _filled(value, target) for key, value in body.items()}
        response = await target.send(method, path, filled)
        answer = response.json()
        fits = response.status_code == 400 and answer.get("errcode") in BAD and field in answer.get("error", "")
        if not fits:
            wrong.append(f"{method} {path} {str(body)[:100]}: {response.status_code} {response.text[:200]}")
    assert not wrong, "\n".join(wrong)


def _filled(value: Any, target: Target) -> Any:
    return (
        {target.user_id if key == "{user}" else key: one for key, one in value.items()}
        if isinstance(value, dict)
        else value
    )


# What stands in the room as it is: a client that reads it must not be answered with a failure of ours.
STRANGE_CONTENT: list[tuple[str, dict[str, Any]]] = [
    ("m.room.topic", {"topic": 1}),
    ("m.room.name", {"name": {"a": []}}),
    ("m.room.avatar", {"url": 5, "info": "none"}),
    ("m.room.canonical_alias", {"alias": None, "alt_aliases": []}),
    ("m.room.history_visibility", {"history_visibility": 7}),
    ("m.room.guest_access", {"guest_access": []}),
    ("m.room.encryption", {"algorithm": 3}),
    ("m.room.pinned_events", {"pinned": "all"}),
    ("m.space.child", {"via": 1}),
    ("m.room.server_acl", {"allow": "all", "deny": 3}),
]


@pytest.mark.parametrize(("event_type", "content"), STRANGE_CONTENT, ids=[name for name, _ in STRANGE_CONTENT])
async def test_strange_state_breaks_no_reader(target: Target, event_type: str, content: dict[str, Any]) -> None:
    put = await target.send("PUT", f"/rooms/{{room}}/state/{event_type}/", content)
    assert put.status_code in (200, 400, 403), put.text
    await _all_readers_work(target)


STRANGE_MESSAGES: list[dict[str, Any]] = [
    {"m.relates_to": 1},
    {"m.relates_to": {"rel_type": 1, "event_id": 2}},
    {"m.relates_to": {"rel_type": "m.annotation", "event_id": "{event}", "key": 1}},
    {"m.relates_to": {"rel_type": "m.annotation", "event_id": "{event}", "key": GIANT[:50_000]}},
    {"m.relates_to": {"rel_type": "m.thread", "event_id": "$" + "x" * 400}},
    {"m.relates_to": {"rel_type": "m.replace", "event_id": "{event}"}, "m.new_content": 5},
    {"m.relates_to": {"rel_type": GIANT[:40_000], "event_id": "{event}"}},
    {"m.relates_to": {"m.in_reply_to": []}},
    {"m.mentions": 1, "body": 3, "msgtype": []},
    {"m.mentions": {"user_ids": [1, {}], "room": "yes"}, "body": None},
    {"body": "\x01\x7f\u2028\ufeff\U0010ffff", "msgtype": "m.text"},
    {"membership": 1, "redacts": 2, "room_id": 3, "unsigned": 4},
]


@pytest.mark.parametrize("number", range(len(STRANGE_MESSAGES)))
async def test_strange_messages_break_no_reader(target: Target, number: int) -> None:
    content = dict(STRANGE_MESSAGES[number])
    relation = content.get("m.relates_to")
    if isinstance(relation, dict):
        content["m.relates_to"] = {
            key: target.event if value == "{event}" else value for key, value in relation.items()
        }
    sent = await target.send("PUT", f"/rooms/{{room}}/send/m.room.message/s{number}", content)
    assert sent.status_code in (200, 400), sent.text
    reacted = await target.send("PUT", f"/rooms/{{room}}/send/m.reaction/r{number}", content)
    assert reacted.status_code in (200, 400), reacted.text
    await _all_readers_work(target)


@pytest.mark.parametrize(
    "content",
    [
        {"membership": "join", "displayname": 1, "avatar_url": []},
        {"membership": "join", "displayname": "x" * 50_000},
        {"membership": "join", "join_authorised_via_users_server": 5},
        {"membership": "join", "third_party_invite": "a"},
        {"membership": "ban", "reason": {}},
        {"membership": "nothing"},
        {},
    ],
)
async def test_strange_memberships_break_no_reader(target: Target, content: dict[str, Any]) -> None:
    put = await target.send("PUT", "/rooms/{room}/state/m.room.member/{user}", content)
    assert put.status_code in (200, 400, 403), put.text
    await _all_readers_work(target)


@pytest.mark.parametrize(
    "content",
    [
        {"users": 1},
        {"users": {"nobody": 100}},
        {"users": {"@a:b": "100"}},
        {"users_default": "all"},
        {"events": {"m.room.name": None}},
        {"notifications": {"room": "x"}},
        {"ban": 2**53 - 1, "users": {"{user}": 2**53 - 1}},
    ],
)
async def test_strange_power_levels_break_no_reader(target: Target, content: dict[str, Any]) -> None:
    users = content.get("users")
    if isinstance(users, dict):
        content = {
            **content,
            "users": {target.user_id if key == "{user}" else key: level for key, level in users.items()},
        }
    put = await target.send("PUT", "/rooms/{room}/state/m.room.power_levels", content)
    assert put.status_code in (200, 400, 403), put.text
    await _all_readers_work(target)


async def _all_readers_work(target: Target) -> None:
    for path in (
        "/sync",
        "/rooms/{room}/messages?dir=b",
        "/rooms/{room}/context/{event}",
        "/rooms/{room}/state",
        "/rooms/{room}/members",
        "/rooms/{room}/joined_members",
        "/rooms/{room}/initialSync",
        "/_matrix/client/v1/rooms/{room}/relations/{event}",
        "/_matrix/client/v1/rooms/{room}/threads",
        "/publicRooms",
    ):
        response = await target.send("GET", path)
        assert response.status_code == 200, f"{path}: {response.status_code} {response.text[:300]}"
    late = await target.send("PUT", "/rooms/{room}/typing/{user}", {"typing": False})
    assert late.status_code in (200, 403)
