"""What redaction keeps, per room version and event type. Spec: Room Versions §Redactions."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixcore.event_hashes import compute_event_id, essential_bytes
from matrixcore.redaction import redact
from matrixcore.room_versions import ROOM_VERSIONS

ALL = tuple(ROOM_VERSIONS)

KEPT = {
    "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth",
    "prev_events", "auth_events", "origin_server_ts",
}  # fmt: skip
KEPT_UNTIL_10 = {"prev_state", "origin", "membership"}

LEVELS = {"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"}


def kept_content(event_type: str, version: int) -> set[str]:
    """The table of the specification."""
    match event_type:
        case "m.room.member":
            keys = {"membership"} | ({"join_authorised_via_users_server"} if version >= 9 else set())
            return keys | ({"third_party_invite"} if version >= 11 else set())
        case "m.room.create":
            return {"creator"} if version < 11 else {"creator", "room_version", "m.federate", "anything"}
        case "m.room.join_rules":
            return {"join_rule"} | ({"allow"} if version >= 8 else set())
        case "m.room.power_levels":
            return LEVELS | ({"invite"} if version >= 11 else set())
        case "m.room.aliases":
            return {"aliases"} if version <= 5 else set()
        case "m.room.history_visibility":
            return {"history_visibility"}
        case "m.room.redaction":
            return {"redacts"} if version >= 11 else set()
        case _:
            return set()


CONTENTS: dict[str, dict[str, Any]] = {
    "m.room.member": {
        "membership": "join",
        "displayname": "A",
        "join_authorised_via_users_server": "@a:b",
        "third_party_invite": {"signed": {"token": "t"}, "display_name": "A"},
    },
    "m.room.create": {"creator": "@a:b", "room_version": "1", "m.federate": False, "anything": 1},
    "m.room.join_rules": {"join_rule": "restricted", "allow": [], "other": 1},
    "m.room.power_levels": {**dict.fromkeys(LEVELS, 1), "invite": 1, "notifications": {}, "other": 1},
    "m.room.aliases": {"aliases": [], "other": 1},
    "m.room.history_visibility": {"history_visibility": "shared", "other": 1},
    "m.room.redaction": {"redacts": "$a", "reason": "r"},
    "m.room.message": {"body": "b", "membership": "join", "redacts": "$a"},
    "m.room.name": {"name": "n"},
}


def event_of(event_type: str, content: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = dict.fromkeys(KEPT | KEPT_UNTIL_10 | {"redacts", "unsigned", "other"}, "x")
    return {**fields, "type": event_type, "content": content}


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("event_type", CONTENTS)
def test_redaction(version: str, event_type: str) -> None:
    content = CONTENTS[event_type]
    redacted = redact(event_of(event_type, content), ROOM_VERSIONS[version])
    assert redacted.keys() == (KEPT | KEPT_UNTIL_10 if int(version) < 11 else KEPT)
    assert redacted["content"].keys() == kept_content(event_type, int(version))
    for key, value in redacted["content"].items():
        assert value == ({"signed": {"token": "t"}} if key == "third_party_invite" else content[key])


def test_a_third_party_invite_without_signature_or_shape() -> None:
    rules = ROOM_VERSIONS["11"]
    for invite, kept in (({"a": 1}, {"third_party_invite": {}}), ("x", {}), (None, {})):
        assert redact(event_of("m.room.member", {"third_party_invite": invite}), rules)["content"] == kept


json_values = st.none() | st.integers(-5, 5) | st.text(st.characters(codec="utf-8"), max_size=3)
known_keys = st.sampled_from(sorted({key for content in CONTENTS.values() for key in content}))
contents = st.dictionaries(known_keys, json_values | st.dictionaries(known_keys | st.just("signed"), json_values))


@pytest.mark.parametrize("version", ALL)
@given(st.sampled_from(sorted(CONTENTS)), contents, st.booleans())
def test_redaction_is_idempotent_and_changes_neither_signed_bytes_nor_event_id(
    version: str, event_type: str, content: dict[str, Any], is_state: bool
) -> None:
    rules = ROOM_VERSIONS[version]
    fields = event_of(event_type, content)
    if not is_state:
        del fields["state_key"]
    before = repr(fields)
    redacted = redact(fields, rules)
    assert redact(redacted, rules) == redacted
    assert essential_bytes(redacted, rules) == essential_bytes(fields, rules)
    assert compute_event_id(redacted, rules) == compute_event_id(fields, rules)
    assert repr(fields) == before
