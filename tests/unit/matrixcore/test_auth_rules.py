"""The authorisation rules apart from members and power levels, allowed and refused."""

from dataclasses import replace
from typing import Any

import pytest
from auth_room import ALICE, ALL, BOB, CREATOR, EVE, AuthRoom, since, until

from matrixcore.auth_events import auth_state_keys
from matrixcore.auth_rules import check_auth, check_auth_events, check_current_state, check_redaction
from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId
from matrixcore.power_levels import PowerLevels
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.verdicts import ACCEPTED, Rejected, SoftFailed

each_version = pytest.mark.parametrize("version", ALL)


def test_rules_of_each_version() -> None:
    """Room Versions: in which version each change came."""
    introduced = {
        "strict_canonical_json": since(6),
        "special_case_aliases_auth": until(5),
        "enforce_key_validity": since(5),
        "limit_notifications_power_levels": since(6),
        "knocking": since(7),
        "restricted_joins": since(8),
        "restricted_join_authorised_via_kept": since(9),
        "knock_restricted": since(10),
        "integer_power_levels": since(10),
        "updated_redaction_rules": since(11),
        "implicit_room_creator": since(11),
        "redacts_in_content": since(11),
        "redaction_needs_no_auth_rule": since(3),
        "room_id_is_create_event_id": since(12),
        "privileged_creators": since(12),
    }
    for name, rules in ROOM_VERSIONS.items():
        assert rules.version == name
        for flag, versions in introduced.items():
            assert getattr(rules, flag) is (name in versions), (name, flag)
    formats = [rules.event_id_format.value for rules in ROOM_VERSIONS.values()]
    assert formats == ["given"] * 2 + ["hash_base64"] + ["hash_urlsafe"] * 9
    assert [rules.state_resolution.value for rules in ROOM_VERSIONS.values()] == ["v1"] + ["v2"] * 10 + ["v2.1"]


# Rule 1: m.room.create


def create_verdict(version: str, *, fields: dict[str, Any] | None = None, **content: Any) -> bool:
    room = AuthRoom(version, **content)
    create = room.create
    if fields:
        create = replace(
            create, fields={**create.fields, **fields}, **{k: v for k, v in fields.items() if k != "content"}
        )
    return check_auth(create, {}) == ACCEPTED


@each_version
def test_create(version: str) -> None:
    assert create_verdict(version)
    assert not create_verdict(version, fields={"prev_events": (EventId("$a:one"),)})
    assert not create_verdict(version, fields={"room_id": RoomId("!room:elsewhere")})
    assert not create_verdict(version, room_version="unheard-of")
    assert not create_verdict(version, room_version=5)


@each_version
def test_create_without_creator(version: str) -> None:
    room = AuthRoom(version)
    bare = replace(room.create, content={})
    assert (check_auth(bare, {}) == ACCEPTED) is (version in since(11))


def test_create_with_additional_creators() -> None:
    assert create_verdict("12", additional_creators=[ALICE, "@:historical"])
    assert create_verdict("12", additional_creators=[])
    for bad in ("x", {}, [5], ["alice"], [ALICE, "@a"], None):
        assert not create_verdict("12", additional_creators=bad)
        assert create_verdict("11", additional_creators=bad)


# Rule 2 (3 in version 12): auth_events


def cite(room: AuthRoom, *keys: tuple[str, str]) -> list[Event]:
    cited = [] if room.rules.room_id_is_create_event_id else [room.create]
    return cited + [room.state[key] for key in keys]


@each_version
def test_auth_events(version: str) -> None:
    room = AuthRoom(version)
    room.power()
    room.member(ALICE, "join")
    member, levels = ("m.room.member", ALICE), ("m.room.power_levels", "")
    message = room.event("m.room.message", None, {}, ALICE)
    good = cite(room, member, levels)
    assert check_auth_events(message, good) == ACCEPTED
    assert check_auth_events(message, cite(room)) == ACCEPTED
    other_member = room.event("m.room.member", ALICE, {"membership": "join"}, ALICE)
    foreign = replace(room.state[member], room_id=RoomId("!other:one"))
    refused = [
        ([*good, other_member], ()),  # 2.1
        (cite(room, member, ("m.room.member", CREATOR)), ()),  # 2.2: of no concern
        ([*good, room.put("m.room.name", "", {})], ()),
        ([*good, message], ()),
        (good, {room.state[member].event_id}),  # 2.3
        ([*cite(room), foreign], ()),  # 2.5
    ]
    if version == "12":
        refused.append(([room.create, *good], ()))
    else:
        refused.append((good[1:], ()))  # 2.4
    for cited, rejected in refused:
        assert isinstance(check_auth_events(message, cited, rejected), Rejected)


@each_version
def test_selection_of_auth_events(version: str) -> None:
    rules = ROOM_VERSIONS[version]
    create = [] if version == "12" else [("m.room.create", "")]
    base = [*create, ("m.room.power_levels", ""), ("m.room.member", ALICE)]
    rule, bob = ("m.room.join_rules", ""), ("m.room.member", BOB)
    assert auth_state_keys("m.room.create", "", ALICE, {}, rules) == []
    assert auth_state_keys("m.room.message", None, ALICE, {"membership": "join"}, rules) == base

    def member(target: str, **content: Any) -> list[tuple[str, str]]:
        return auth_state_keys("m.room.member", target, ALICE, content, rules)

    assert member(ALICE, membership="leave") == base
    assert member(BOB, membership="ban") == [*base, bob]
    assert member(ALICE, membership="join") == [*base, rule]
    assert member(ALICE, membership="knock") == [*base, rule]
    assert member(BOB, membership="invite") == [*base, bob, rule]
    signed = {"signed": {"token": "t"}}
    assert member(BOB, membership="invite", third_party_invite=signed) == [
        *base, bob, rule, ("m.room.third_party_invite", "t"),
    ]  # fmt: skip
    for broken in (5, {}, {"signed": 5}, {"signed": {"token": 5}}):
        assert member(BOB, membership="invite", third_party_invite=broken) == [*base, bob, rule]
    authorised = member(ALICE, membership="join", join_authorised_via_users_server=EVE)
    assert authorised == [*base, rule] + ([("m.room.member", EVE)] if version in since(8) else [])
    assert member(ALICE, membership="join", join_authorised_via_users_server=ALICE) == [*base, rule]


# Rules 3 to 8


@each_version
def test_a_room_without_or_with_another_create_event_refuses_all(version: str) -> None:
    room, other = AuthRoom(version), AuthRoom(version, a="b")
    message = room.event("m.room.message", None, {})
    bare = {key: event for key, event in room.state.items() if key != ("m.room.create", "")}
    assert isinstance(check_auth(message, bare), Rejected)
    assert check_auth(message, bare, create=room.create) == ACCEPTED
    foreign = replace(other.create, room_id=RoomId("!other:one"))
    assert isinstance(check_auth(message, bare, create=foreign), Rejected)


@each_version
def test_federation_can_be_switched_off(version: str) -> None:
    for flag, allowed in ((False, False), (True, True)):
        room = AuthRoom(version, **{"m.federate": flag})
        room.join_rule("public")
        assert room.allows(room.event("m.room.member", BOB, {"membership": "join"}, BOB)) is allowed
        assert room.allows(room.event("m.room.member", ALICE, {"membership": "join"}, ALICE))


@each_version
def test_aliases(version: str) -> None:
    room = AuthRoom(version)
    room.join_rule("public")
    old = version in until(5)
    assert room.allows(room.event("m.room.aliases", "two", {}, BOB)) is old  # without being a member
    assert not room.allows(room.event("m.room.aliases", "one", {}, BOB))
    assert room.allows(room.event("m.room.aliases", None, {})) is not old
    assert room.allows(room.event("m.room.aliases", "two", {})) is not old
    room.power(state_default=1)
    room.member(BOB, "join")
    assert room.allows(room.event("m.room.aliases", "two", {}, BOB)) is old


@each_version
@pytest.mark.parametrize("membership", ["invite", "leave", "ban", "knock", None])
def test_only_members_send(version: str, membership: str | None) -> None:
    room = AuthRoom(version)
    if membership is not None:
        room.member(ALICE, membership)
    assert not room.allows(room.event("m.room.message", None, {}, ALICE))
    room.member(ALICE, "join")
    assert room.allows(room.event("m.room.message", None, {}, ALICE))


@each_version
def test_third_party_invites_need_the_invite_level(version: str) -> None:
    room = AuthRoom(version)
    room.member(ALICE, "join")
    invite = room.event("m.room.third_party_invite", "token", {}, ALICE)
    assert room.allows(invite)  # although state_default is 50
    room.power(invite=10)
    assert not room.allows(invite)
    room.power(invite=10, users={ALICE: 10})
    assert room.allows(invite)


@each_version
def test_required_power(version: str) -> None:
    room = AuthRoom(version)
    room.member(ALICE, "join")
    message, name = room.event("m.room.message", None, {}, ALICE), room.event("m.room.name", "", {}, ALICE)
    assert room.allows(message)
    assert not room.allows(name)
    room.power(events_default=10, events={"m.room.name": 0})
    assert not room.allows(message)
    assert room.allows(name)
    room.power(events_default=10, users={ALICE: 10})
    assert room.allows(message)
    assert not room.allows(name)
    room.power(events={"m.room.message": 51}, state_default=50, users={ALICE: 50})
    assert not room.allows(message)
    assert room.allows(name)


@each_version
def test_state_keys_that_are_user_ids(version: str) -> None:
    room = AuthRoom(version)
    assert room.allows(room.event("x", CREATOR, {}))
    assert room.allows(room.event("x", "anything", {}))
    assert not room.allows(room.event("x", ALICE, {}))
    assert not room.allows(room.event("x", "@", {}))


# Rule 11 of versions 1 and 2, and the handling of redactions in others


@each_version
def test_redactions(version: str) -> None:
    room = AuthRoom(version)
    room.member(BOB, "join")
    room.member(ALICE, "join")
    old = version in until(2)
    own = room.event("m.room.redaction", None, {}, BOB, redacts="$theirs:two")
    foreign = room.event("m.room.redaction", None, {}, BOB, redacts="$theirs:one")
    assert room.allows(own)
    assert room.allows(foreign) is not old
    assert room.allows(room.event("m.room.redaction", None, {}, BOB)) is not old
    room.power(users={BOB: 50})
    assert room.allows(foreign)
    room.power(events={"m.room.redaction": 10})
    assert not room.allows(own)


@pytest.mark.parametrize("version", since(3))
def test_when_a_redaction_is_applied(version: str) -> None:
    room = AuthRoom(version)
    by_alice, by_bob = room.event("m.room.message", None, {}, ALICE), room.event("m.room.message", None, {}, BOB)
    levels = PowerLevels.of(None, room.create)
    redaction = room.event("m.room.redaction", None, {}, EVE, redacts=by_bob.event_id)
    assert check_redaction(redaction, by_bob, levels) == ACCEPTED  # EVE is on BOB's server
    assert isinstance(check_redaction(redaction, by_alice, levels), Rejected)  # another target
    redaction = room.event("m.room.redaction", None, {}, EVE, redacts=by_alice.event_id)
    assert isinstance(check_redaction(redaction, by_alice, levels), Rejected)
    levels = PowerLevels.of(room.power(users={EVE: 50}), room.create)
    assert check_redaction(redaction, by_alice, levels) == ACCEPTED
    elsewhere = replace(by_alice, room_id=RoomId("!other:one"))
    assert isinstance(check_redaction(redaction, elsewhere, levels), Rejected)


def test_old_versions_have_judged_a_redaction_when_they_authorised_it() -> None:
    room = AuthRoom("1")
    target = room.event("m.room.message", None, {}, ALICE)
    redaction = room.event("m.room.redaction", None, {}, BOB, redacts=target.event_id)
    assert check_redaction(redaction, target, PowerLevels.of(None, room.create)) == ACCEPTED


@each_version
def test_what_only_the_current_state_refuses_is_soft_failed(version: str) -> None:
    room = AuthRoom(version)
    room.member(ALICE, "join")
    message = room.event("m.room.message", None, {}, ALICE)
    assert check_current_state(message, room.state) == ACCEPTED
    room.member(ALICE, "ban")
    assert check_current_state(message, room.state) == SoftFailed("the sender is not in the room")
