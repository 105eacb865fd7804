"""Bodies that routes accept, for the fuzzing to start from. `{room}` and the like are filled in later."""

from typing import Any

_KEY = "A" * 43
_SIGNATURES = {"{user}": {"ed25519:{device}": "A" * 86}}
_DEVICE_KEYS = {
    "user_id": "{user}",
    "device_id": "{device}",
    "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
    "keys": {"ed25519:{device}": _KEY, "curve25519:{device}": _KEY},
    "signatures": _SIGNATURES,
}
_CROSS_SIGNING_KEY = {
    "user_id": "{user}",
    "usage": ["master"],
    "keys": {f"ed25519:{_KEY}": _KEY},
    "signatures": _SIGNATURES,
}
_SESSION = {"first_message_index": 1, "forwarded_count": 0, "is_verified": True, "session_data": {"ciphertext": "a"}}
_FILTER = {"limit": 10, "types": ["m.*"], "not_senders": ["{user}"], "lazy_load_members": True, "contains_url": False}
_PASSWORD_AUTH = {
    "type": "m.login.password",
    "identifier": {"type": "m.id.user", "user": "{user}"},
    "password": "wrong",
    "session": "a",
}
_MESSAGE = {
    "msgtype": "m.text",
    "body": "hello",
    "m.mentions": {"user_ids": ["{user}"], "room": True},
    "m.relates_to": {"rel_type": "m.thread", "event_id": "{event}", "m.in_reply_to": {"event_id": "{event}"}},
    "m.new_content": {"body": "new", "msgtype": "m.text"},
}
_MEMBER = {"user_id": "@nobody:{server}", "reason": "none"}

# By the end of the route's path; the longest that fits counts.
_GOOD: dict[str, Any] = {
    "/createRoom": {
        "name": "a",
        "topic": "b",
        "preset": "public_chat",
        "visibility": "public",
        "room_version": "12",
        "invite": ["@nobody:{server}"],
        "is_direct": True,
        "creation_content": {"m.federate": True, "type": "m.space", "additional_creators": ["@nobody:{server}"]},
        "initial_state": [{"type": "m.room.topic", "state_key": "", "content": {"topic": "c"}}],
        "power_level_content_override": {"users": {"{user}": 100}, "events": {"a": 50}, "ban": 50},
        "invite_3pid": [],
    },
    "/send/{event_type}/{txn_id}": _MESSAGE,
    "/state/{event_type}": {"topic": "a", "users": {"{user}": 100}, "membership": "join", "events_default": 0},
    "/state/{event_type}/{state_key}": {
        "membership": "join",
        "displayname": "a",
        "avatar_url": "mxc://a/b",
        "via": ["a"],
    },
    "/redact/{event_id}/{txn_id}": {"reason": "none", "org.matrix.msc3912.with_relations": ["m.thread"]},
    "/upgrade": {"new_version": "12", "additional_creators": ["@nobody:{server}"]},
    "/invite": _MEMBER,
    "/ban": _MEMBER,
    "/unban": _MEMBER,
    "/kick": {"user_id": "{user}", "reason": "a"},
    "/leave": {"reason": "a"},
    "/join": {
        "reason": "a",
        "third_party_signed": {"sender": "{user}", "mxid": "{user}", "token": "a", "signatures": {}},
    },
    "/join/{room_id_or_alias}": {"reason": "a"},
    "/knock/{room_id_or_alias}": {"reason": "a"},
    "/typing/{user_id}": {"typing": True, "timeout": 1000},
    "/dehydrated_device": {
        "device_id": "SLEEPING",
        "device_data": {"algorithm": "org.matrix.msc3814.v2", "device_pickle": "a", "nonce": "b"},
        "initial_device_display_name": "c",
        "device_keys": {**_DEVICE_KEYS, "device_id": "SLEEPING"},
        "one_time_keys": {"signed_curve25519:AAAAAQ": {"key": _KEY, "signatures": _SIGNATURES}},
        "fallback_keys": {},
    },
    "/subscription": {"automatic": "{event}"},
    "/read_markers": {"m.fully_read": "{event}", "m.read": "{event}", "m.read.private": "{event}"},
    "/receipt/{receipt_type}/{event_id}": {"thread_id": "main"},
    "/account_data/{type}": {"rooms": {}, "ignored_users": {"@nobody:{server}": {}}, "{user}": ["{room}"]},
    "/tags/{tag}": {"order": 0.5},
    "/filter": {
        "room": {"timeline": _FILTER, "state": _FILTER, "rooms": ["{room}"], "include_leave": True},
        "presence": _FILTER,
        "account_data": _FILTER,
        "event_fields": ["content.body"],
        "event_format": "client",
    },
    "/profile/{user_id}/{key_name}": {"displayname": "a", "avatar_url": "mxc://a/b", "name": [1]},
    "/status": {"presence": "online", "status_msg": "a"},
    "/pushrules/global/{kind}/{rule_id}": {
        "actions": ["notify", {"set_tweak": "sound", "value": "default"}],
        "conditions": [
            {"kind": "event_match", "key": "content.body", "pattern": "a*"},
            {"kind": "room_member_count", "is": ">2"},
            {"kind": "event_property_is", "key": "a", "value": 1},
        ],
        "pattern": "a*",
    },
    "/enabled": {"enabled": True},
    "/actions": {"actions": ["notify", {"set_tweak": "highlight"}]},
    "/pushers/set": {
        "kind": "http",
        "app_id": "a",
        "pushkey": "b",
        "app_display_name": "c",
        "device_display_name": "d",
        "lang": "e",
        "profile_tag": "f",
        "append": True,
        "data": {"url": "https://push.example/_matrix/push/v1/notify", "format": "event_id_only"},
    },
    "/keys/upload": {
        "device_keys": _DEVICE_KEYS,
        "one_time_keys": {"signed_curve25519:AAAAAQ": {"key": _KEY, "signatures": _SIGNATURES}, "curve25519:A": _KEY},
        "fallback_keys": {"signed_curve25519:AAAAAQ": {"key": _KEY, "fallback": True, "signatures": _SIGNATURES}},
    },
    "/keys/query": {"device_keys": {"{user}": ["{device}"]}, "timeout": 10},
    "/keys/claim": {"one_time_keys": {"{user}": {"{device}": "signed_curve25519"}}, "timeout": 10},
    "/keys/device_signing/upload": {
        "master_key": _CROSS_SIGNING_KEY,
        "self_signing_key": {**_CROSS_SIGNING_KEY, "usage": ["self_signing"]},
        "user_signing_key": {**_CROSS_SIGNING_KEY, "usage": ["user_signing"]},
        "auth": _PASSWORD_AUTH,
    },
    "/keys/signatures/upload": {"{user}": {"{device}": _DEVICE_KEYS, _KEY: _CROSS_SIGNING_KEY}},
    "/sendToDevice/{event_type}/{txn_id}": {"messages": {"{user}": {"{device}": {"a": 1}, "*": {"b": [2]}}}},
    "/room_keys/version": {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "a"}},
    "/room_keys/version/{version}": {
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": {},
        "version": "1",
    },
    "/room_keys/keys": {"rooms": {"{room}": {"sessions": {"a": _SESSION}}}},
    "/room_keys/keys/{room_id}": {"sessions": {"a": _SESSION}},
    "/room_keys/keys/{room_id}/{session_id}": _SESSION,
    "/devices/{device_id}": {"display_name": "a", "auth": _PASSWORD_AUTH},
    "/delete_devices": {"devices": ["none"], "auth": _PASSWORD_AUTH},
    "/publicRooms": {
        "limit": 5,
        "since": "n1.!a:b",
        "filter": {"generic_search_term": "a", "room_types": [None, "m.space"]},
    },
    "/user_directory/search": {"search_term": "a", "limit": 5},
    "/directory/room/{room_alias}": {"room_id": "{room}"},
    "/directory/list/room/{room_id}": {"visibility": "public"},
    "/login": {**_PASSWORD_AUTH, "device_id": "A", "initial_device_display_name": "a", "refresh_token": True},
    "/register": {
        "username": "new",
        "password": "a",
        "device_id": "B",
        "inhibit_login": True,
        "refresh_token": True,
        "auth": {"type": "m.login.dummy", "session": "a"},
    },
    "/refresh": {"refresh_token": "a"},
    "/account/password": {"new_password": "a", "logout_devices": True, "auth": _PASSWORD_AUTH},
    "/account/deactivate": {"id_server": "a", "erase": True, "auth": _PASSWORD_AUTH},
    "/report/{event_id}": {"reason": "a", "score": -100},
    "/report": {"reason": "a"},
    "/_synapse/admin/v1/register": {"nonce": "a", "username": "b", "password": "c", "mac": "d", "admin": False},
}


def good_body(path: str) -> Any:
    """A body that the route with this path takes; None where none is known."""
    fits = [end for end in _GOOD if path.endswith(end)]
    return _GOOD[max(fits, key=len)] if fits else None
