"""Event formats, hashes, IDs, signatures and building, for all room versions."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixcore.canonical_json import encode_canonical_json, parse_exact_json
from matrixcore.event_building import build_event, finish_event
from matrixcore.event_hashes import (
    check_content_hash,
    compute_event_id,
    content_hash,
    essential_bytes,
    reference_hash_base64,
)
from matrixcore.event_signing import add_signature, check_event_signatures, required_signers, sign_event
from matrixcore.events import Event, InvalidEvent, client_fields, client_form, load_event, parse_event, redact_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS, EventIdFormat, RoomVersionRules
from matrixcore.signing import SigningKey, decode_base64, encode_base64
from matrixcore.verdicts import Accepted, Dropped

KEY = SigningKey("1", decode_base64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"))
DOMAIN = ServerName("domain")
KEYS = {DOMAIN: {"ed25519:1": KEY.public_key}}
VERSIONS = list(ROOM_VERSIONS.values())

# Made, signed and named by Synapse 1.163: for each room version a create event, a member with non-ASCII
# text, power levels, a message with escapes, a redaction, and up to version 5 a message with odd numbers.
SYNAPSE_EVENTS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / "events.json").read_text())

each_version = pytest.mark.parametrize("rules", VERSIONS, ids=lambda rules: f"v{rules.version}")


def message(rules: RoomVersionRules, **changes: Any) -> Event:
    """A message by @u:domain."""
    is_old = rules.event_id_format is EventIdFormat.GIVEN
    known = ["$a:domain", "$b:domain"]
    arguments: dict[str, Any] = {
        "rules": rules,
        "room_id": RoomId("!" + "r" * 43 if rules.room_id_is_create_event_id else "!r:domain"),
        "sender": UserId("@u:domain"),
        "event_type": "m.room.message",
        "state_key": None,
        "content": {"body": "hello", "msgtype": "m.text"},
        "origin_server_ts": 1_700_000_000_000,
        "depth": 12,
        "prev_events": [EventId("$a:domain")],
        "auth_events": [EventId("$b:domain")],
        "server_name": DOMAIN,
        "signing_key": KEY,
        "event_id": EventId("$c:domain") if is_old else None,
        "reference_hashes": {EventId(known_id): "aGFzaA" for known_id in known} if is_old else None,
    }
    return build_event(**{**arguments, **changes})


def changed(event: Event, **changes: Any) -> dict[str, Any]:
    """The fields of an event with some set, or removed where the value is `...`."""
    return {key: value for key, value in {**event.fields, **changes}.items() if value is not ...}


@pytest.mark.parametrize("vector", SYNAPSE_EVENTS, ids=lambda vector: f"v{vector['room_version']}-{vector['event_id']}")
def test_events_of_another_server(vector: dict[str, Any]) -> None:
    rules = ROOM_VERSIONS[vector["room_version"]]
    event = parse_event(json.dumps(vector["pdu"]).encode(), rules)
    assert (event.event_id, event.room_id) == (vector["event_id"], vector["room_id"])
    assert reference_hash_base64(event.fields, rules) == vector["reference_hash"]
    assert check_content_hash(event.fields, rules)
    assert check_event_signatures(event, KEYS) == Accepted()
    assert "unsigned" not in event.fields
    again = load_event(event.pdu, event.event_id, rules)
    assert (again.fields, again.room_id) == (event.fields, event.room_id)
    shown = parse_exact_json(client_form(event) + b"}")
    assert shown["event_id"] == event.event_id
    assert parse_exact_json(orjson.dumps(client_fields(event.pdu, event.event_id, rules))) == shown


@pytest.mark.parametrize(
    ("version", "event_id"),
    [
        ("3", "$RrGxF28UrHLmoASHndYb9Jb/1SFww2ptmtur9INS438"),
        ("4", "$RrGxF28UrHLmoASHndYb9Jb_1SFww2ptmtur9INS438"),
    ],
)
def test_id_of_the_create_event_of_a_public_room(version: str, event_id: str) -> None:
    fields = {
        "auth_events": [],
        "prev_events": [],
        "type": "m.room.create",
        "room_id": "!uXDCzlYgCTHtiWCkEx:jki.re",
        "sender": "@erikj:jki.re",
        "content": {
            "room_version": "5",
            "predecessor": {
                "room_id": "!gdRMqOrTFdOCYHNwOo:half-shot.uk",
                "event_id": "$LP7ROBc4b+cMc1UE9haIz8q5AK2AIW4eJ90FfKLvyZI",
            },
            "creator": "@erikj:jki.re",
        },
        "depth": 1,
        "prev_state": [],
        "state_key": "",
        "origin": "jki.re",
        "origin_server_ts": 1560284621137,
        "hashes": {"sha256": "IX6zuNiJpJPNf70BLleL3HSCpjKeq9Uhu7uUpyDjBmc"},
        "signatures": {
            "jki.re": {
                "ed25519:auto": "O4IyFfF2PPtGp5uaDm8t57dZbdh8vc8Q64LgCwvzYRVItAMI0uisfiAFaxkVT7MRpzh6N2QNN5NMRXZKmgPYDA"
            }
        },
        "unsigned": {"age": 1321650},
    }
    assert parse_event(fields, ROOM_VERSIONS[version]).event_id == event_id
    assert check_content_hash(fields, ROOM_VERSIONS[version])


def test_event_signing_vectors_of_the_specification() -> None:
    """Appendices §Event Signing: a minimal event, and one with redactable content."""
    rules = ROOM_VERSIONS["1"]
    minimal = {
        "room_id": "!x:domain",
        "sender": "@a:domain",
        "origin": "domain",
        "origin_server_ts": 1000000,
        "type": "X",
        "content": {},
        "prev_events": [],
        "auth_events": [],
        "depth": 3,
        "unsigned": {"age_ts": 1000000},
    }
    event = finish_event(minimal, ROOM_VERSIONS["4"], server_name=DOMAIN, signing_key=KEY)
    assert event.fields["hashes"] == {"sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"}
    assert event.fields["signatures"]["domain"]["ed25519:1"] == (
        "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"
    )
    redactable = {
        "content": {"body": "Here is the message content"},
        "event_id": "$0:domain",
        "origin": "domain",
        "origin_server_ts": 1000000,
        "type": "m.room.message",
        "room_id": "!r:domain",
        "sender": "@u:domain",
        "unsigned": {"age_ts": 1000000},
    }
    digest = encode_base64(content_hash(redactable, rules))
    assert digest == "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g"
    assert KEY.sign(essential_bytes({**redactable, "hashes": {"sha256": digest}}, rules)) == (
        "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA"
    )


@each_version
def test_a_built_event_is_what_a_peer_would_parse(rules: RoomVersionRules) -> None:
    event = message(rules)
    parsed = parse_event(event.pdu, rules)
    assert parsed.event_id == event.event_id == compute_event_id(event.fields, rules)
    assert parsed.fields == event.fields
    assert parsed.pdu == event.pdu == encode_canonical_json(event.fields)
    assert (parsed.prev_events, parsed.auth_events) == (("$a:domain",), ("$b:domain",))
    assert check_content_hash(parsed.fields, rules)
    assert check_event_signatures(parsed, KEYS) == Accepted()
    assert not parsed.is_state


@each_version
def test_the_create_event_names_the_room_in_version_12(rules: RoomVersionRules) -> None:
    room_id = None if rules.room_id_is_create_event_id else RoomId("!r:domain")
    create = message(rules, event_type="m.room.create", state_key="", room_id=room_id, prev_events=[], auth_events=[])
    if rules.room_id_is_create_event_id:
        assert create.room_id == "!" + create.event_id[1:]
        assert "room_id" not in create.fields
    else:
        assert create.room_id == "!r:domain"
    assert parse_event(create.pdu, rules).room_id == create.room_id
    assert create.state_tuple == ("m.room.create", "")


@each_version
def test_redacts_is_kept_where_the_version_has_it_and_shown_in_both_places(rules: RoomVersionRules) -> None:
    target = EventId("$target:domain")
    event = message(rules, event_type="m.room.redaction", content={"reason": "spam"}, redacts=target)
    assert event.redacts == target
    assert ("redacts" in event.fields) is not rules.redacts_in_content
    assert ("redacts" in event.content) is rules.redacts_in_content
    shown = orjson.loads(client_form(event) + b"}")
    assert shown["redacts"] == target
    assert shown["content"] == {"reason": "spam", "redacts": target}
    assert redact_event(event).redacts == (target if rules.redacts_in_content else None)


def test_client_form() -> None:
    event = message(ROOM_VERSIONS["12"], event_type="m.room.topic", state_key="", content={"topic": "ü"})
    assert orjson.loads(client_form(event) + b"}") == {
        "content": {"topic": "ü"},
        "event_id": event.event_id,
        "origin_server_ts": 1_700_000_000_000,
        "sender": "@u:domain",
        "state_key": "",
        "type": "m.room.topic",
    }
    assert b"state_key" not in client_form(message(ROOM_VERSIONS["12"]))


@each_version
@given(data=st.data())
def test_any_change_of_content_shows_in_the_hash_and_any_of_the_essence_in_the_signature(
    rules: RoomVersionRules, data: st.DataObject
) -> None:
    event = message(rules)
    text = data.draw(st.text(st.characters(codec="utf-8")).filter(lambda text: text != "hello"))
    forged = parse_event(changed(event, content={"body": text, "msgtype": "m.text"}), rules)
    assert not check_content_hash(forged.fields, rules)
    assert check_event_signatures(forged, KEYS) == Accepted()  # content is not essential: it is redacted instead
    assert redact_event(forged).fields == redact_event(event).fields
    field = data.draw(st.sampled_from(["depth", "origin_server_ts"]))
    forged = parse_event(changed(event, **{field: event.fields[field] + data.draw(st.integers(1, 1000))}), rules)
    assert isinstance(check_event_signatures(forged, KEYS), Dropped)


def test_required_signers() -> None:
    old, new = ROOM_VERSIONS["2"], ROOM_VERSIONS["12"]
    assert required_signers(message(old, event_id=EventId("$x:elsewhere"))) == ["domain", "elsewhere"]
    assert required_signers(message(new)) == ["domain"]
    member: dict[str, Any] = {"event_type": "m.room.member", "state_key": "@u:domain"}
    join = {"membership": "join", "join_authorised_via_users_server": "@admin:resident"}
    assert required_signers(message(new, **member, content=join)) == ["domain", "resident"]
    assert required_signers(message(ROOM_VERSIONS["7"], **member, content=join)) == ["domain"]
    assert required_signers(message(new, **member, content={**join, "join_authorised_via_users_server": 5})) == [
        "domain"
    ]
    third_party = {"membership": "invite", "third_party_invite": {}}
    assert required_signers(message(new, **member, content=third_party)) == []


def test_two_servers_sign_one_event() -> None:
    rules, resident = ROOM_VERSIONS["12"], ServerName("resident")
    other = SigningKey("r", b"r" * 32)
    join = {"membership": "join", "join_authorised_via_users_server": "@admin:resident"}
    event = message(rules, event_type="m.room.member", state_key="@u:domain", content=join)
    keys = {**KEYS, resident: {other.key_id: other.public_key}}
    assert isinstance(check_event_signatures(event, keys), Dropped)
    signed = sign_event(event, resident, other)
    assert check_event_signatures(parse_event(signed.pdu, rules), keys) == Accepted()
    assert signed.event_id == event.event_id == compute_event_id(signed.fields, rules)
    assert isinstance(check_event_signatures(add_signature(event, resident, other.key_id, "Zg"), keys), Dropped)
    assert isinstance(check_event_signatures(signed, {DOMAIN: {}}), Dropped)


LONG = "x" * 256
REFUSED: dict[str, dict[str, Any]] = {
    "no sender": {"sender": ...},
    "sender is no user": {"sender": "u"},
    "sender too long": {"sender": "@" + LONG + ":domain"},
    "no type": {"type": ...},
    "type is a number": {"type": 5},
    "NUL in type": {"type": "a\0"},
    "state_key is null": {"state_key": None},
    "no content": {"content": ...},
    "content is a list": {"content": []},
    "no origin_server_ts": {"origin_server_ts": ...},
    "origin_server_ts is true": {"origin_server_ts": True},
    "origin_server_ts is a string": {"origin_server_ts": "1"},
    "origin_server_ts is too large": {"origin_server_ts": 2**63},
    "depth is negative": {"depth": -1},
    "depth is a float": {"depth": 1.0},
    "depth is too large": {"depth": 2**63},
    "no hashes": {"hashes": ...},
    "no sha256": {"hashes": {"md5": "x"}},
    "no signatures": {"signatures": ...},
    "signatures of a wrong shape": {"signatures": {"domain": "x"}},
    "no prev_events": {"prev_events": ...},
    "prev_events is a string": {"prev_events": "$a"},
    "an auth event is a number": {"auth_events": [5]},
    "no room_id": {"room_id": ...},
    "room_id is no room": {"room_id": "r"},
}


@each_version
@pytest.mark.parametrize("case", REFUSED)
def test_format_is_refused(rules: RoomVersionRules, case: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        parse_event(changed(message(rules), **REFUSED[case]), rules)
    assert not caught.value.too_large


@each_version
def test_limits_of_references(rules: RoomVersionRules) -> None:
    event = message(rules)
    entry = event.fields["prev_events"][0]
    parse_event(changed(event, prev_events=[entry] * 20, auth_events=[entry] * 10), rules)
    for name, count in (("prev_events", 21), ("auth_events", 11)):
        with pytest.raises(InvalidEvent):
            parse_event(changed(event, **{name: [entry] * count}), rules)
    other_kind = "$a" if rules.event_id_format is EventIdFormat.GIVEN else ["$a", {"sha256": "x"}]
    with pytest.raises(InvalidEvent):
        parse_event(changed(event, prev_events=[other_kind]), rules)


@each_version
def test_limits_of_size(rules: RoomVersionRules) -> None:
    event = message(rules)
    room = 65_536 - len(event.pdu)
    assert (
        len(parse_event(changed(event, content={"body": "hello" + "x" * room, "msgtype": "m.text"}), rules).pdu)
        == 65_536
    )
    for changes in (
        {"content": {"body": "hello" + "x" * (room + 1), "msgtype": "m.text"}},
        {"type": LONG},
        {"state_key": LONG},
        {"state_key": "ä" * 128},
    ):
        with pytest.raises(InvalidEvent) as caught:
            parse_event(changed(event, **changes), rules)
        assert caught.value.too_large


def test_unsigned_does_not_count_towards_the_size() -> None:
    event = message(ROOM_VERSIONS["12"])
    assert parse_event(changed(event, unsigned={"x": "x" * 70_000}), ROOM_VERSIONS["12"]).pdu == event.pdu


@each_version
def test_numbers_are_strict_from_version_6_on(rules: RoomVersionRules) -> None:
    event = message(rules)
    for number in (1.5, 2**53):
        fields = changed(event, content={"n": number})
        if rules.strict_canonical_json:
            with pytest.raises(InvalidEvent):
                parse_event(fields, rules)
        else:
            assert parse_event(fields, rules).content == {"n": number}
    if rules.strict_canonical_json:
        with pytest.raises(InvalidEvent):
            parse_event(changed(event, depth=2**53), rules)


@pytest.mark.parametrize("pdu", [b"", b"[]", b"{", b'"x"', b'{"a":"\\ud800"}', b"[" * 5000])
def test_what_is_no_event_at_all(pdu: bytes) -> None:
    for rules in (ROOM_VERSIONS["1"], ROOM_VERSIONS["12"]):
        with pytest.raises(InvalidEvent):
            parse_event(pdu, rules)


def test_a_deep_event_is_invalid_rather_than_a_crash() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    for version in ("1", "12"):
        rules = ROOM_VERSIONS[version]
        with pytest.raises(InvalidEvent):
            parse_event(changed(message(rules), content={"deep": deep}), rules)


@pytest.mark.parametrize(
    ("changes", "too_large"),
    [
        ({"content": {"body": "x" * 65_536}}, True),
        ({"event_type": LONG}, True),
        ({"state_key": LONG}, True),
        ({"content": {"n": 1.5}}, False),
        ({"content": {"n": 2**53}}, False),
        ({"content": {"n": "\ud800"}}, False),
        ({"prev_events": [EventId("$a:domain")] * 21}, False),
    ],
)
def test_building_refuses_what_peers_would_drop(changes: dict[str, Any], too_large: bool) -> None:
    with pytest.raises(InvalidEvent) as caught:
        message(ROOM_VERSIONS["12"], **changes)
    assert caught.value.too_large is too_large
