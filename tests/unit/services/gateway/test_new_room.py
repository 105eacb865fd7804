"""The first events of rooms. Spec: C-S API POST /createRoom."""

from typing import Any

import pytest

from matrixcore.identifiers import RoomAlias, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.new_room import (
    InvalidRoomRequest,
    MemberProfile,
    NewRoom,
    create_content,
    first_events,
    parse_new_room,
)

ALICE, BOB, CAROL = (UserId(f"@{name}:here.org") for name in ("alice", "bob", "carol"))
ALIAS = RoomAlias("#pub:here.org")


def parse(version: str = "12", alias: RoomAlias | None = None, **body: Any) -> NewRoom:
    return parse_new_room(body, ALICE, ROOM_VERSIONS[version], alias)


def kinds(room: NewRoom) -> list[tuple[str, str | None]]:
    return [(event.type, event.state_key) for event in first_events(room, {})]


def content_of(room: NewRoom, event_type: str) -> dict[str, Any]:
    (found,) = [event.content for event in first_events(room, {}) if event.type == event_type]
    return found


def test_the_order_of_events_is_the_specification_s() -> None:
    room = parse(
        alias=ALIAS,
        preset="public_chat",
        name="Pub",
        topic="Ale",
        invite=[BOB],
        initial_state=[{"type": "m.room.encryption", "content": {"algorithm": "x"}}],
    )
    assert kinds(room) == [
        ("m.room.member", ALICE),
        ("m.room.power_levels", ""),
        ("m.room.canonical_alias", ""),
        ("m.room.join_rules", ""),
        ("m.room.history_visibility", ""),
        ("m.room.guest_access", ""),
        ("m.room.encryption", ""),
        ("m.room.name", ""),
        ("m.room.topic", ""),
        ("m.room.member", BOB),
    ]


@pytest.mark.parametrize(
    ("preset", "join_rule", "guest_access"),
    [
        ("private_chat", "invite", "can_join"),
        ("trusted_private_chat", "invite", "can_join"),
        ("public_chat", "public", "forbidden"),
    ],
)
def test_presets(preset: str, join_rule: str, guest_access: str) -> None:
    room = parse(preset=preset)
    assert content_of(room, "m.room.join_rules") == {"join_rule": join_rule}
    assert content_of(room, "m.room.guest_access") == {"guest_access": guest_access}
    assert content_of(room, "m.room.history_visibility") == {"history_visibility": "shared"}


def test_the_preset_follows_the_visibility() -> None:
    assert parse(visibility="public").preset == "public_chat"
    assert parse().preset == "private_chat"


def test_version_12_has_no_creator_among_the_levels_and_a_high_tombstone() -> None:
    levels = content_of(parse(), "m.room.power_levels")
    assert levels["users"] == {}
    assert levels["events"]["m.room.tombstone"] > 100
    older = content_of(parse("11"), "m.room.power_levels")
    assert older["users"] == {ALICE: 100}


def test_trusted_invitees_become_creators_or_get_the_creator_s_level() -> None:
    body = {"preset": "trusted_private_chat", "invite": [BOB, CAROL]}
    newest = parse(**body, creation_content={"additional_creators": [CAROL, ALICE]})
    assert create_content(newest) == {"room_version": "12", "additional_creators": [CAROL, BOB]}
    assert content_of(newest, "m.room.power_levels")["users"] == {}
    older = parse("11", **body)
    assert "additional_creators" not in create_content(older)
    assert content_of(older, "m.room.power_levels")["users"] == {ALICE: 100, BOB: 100, CAROL: 100}


def test_the_server_writes_version_and_creator() -> None:
    given = {"creator": BOB, "room_version": "1", "m.federate": False}
    assert create_content(parse("10", creation_content=given)) == {
        "creator": ALICE,
        "room_version": "10",
        "m.federate": False,
    }
    assert create_content(parse("11", creation_content=given)) == {"room_version": "11", "m.federate": False}


def test_initial_state_replaces_preset_events_and_yields_to_name_and_topic() -> None:
    room = parse(
        name="Given",
        initial_state=[
            {"type": "m.room.join_rules", "content": {"join_rule": "knock"}},
            {"type": "m.room.name", "content": {"name": "Other"}},
            {"type": "m.room.topic", "state_key": "", "content": {"topic": "Kept"}},
        ],
    )
    assert content_of(room, "m.room.join_rules") == {"join_rule": "knock"}
    assert content_of(room, "m.room.name") == {"name": "Given"}
    assert content_of(room, "m.room.topic") == {"topic": "Kept"}


def test_the_override_is_laid_over_the_default_levels() -> None:
    levels = content_of(parse("11", power_level_content_override={"events_default": 7}), "m.room.power_levels")
    assert (levels["events_default"], levels["users"]) == (7, {ALICE: 100})


def test_member_events_show_profiles_and_directness() -> None:
    room = parse(invite=[BOB], is_direct=True)
    profiles = {ALICE: MemberProfile("Alice", "mxc://here.org/a"), BOB: MemberProfile("Bob")}
    first, *_, last = first_events(room, profiles)
    assert first.content == {"membership": "join", "displayname": "Alice", "avatar_url": "mxc://here.org/a"}
    assert last.content == {"membership": "invite", "displayname": "Bob", "is_direct": True}


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({"visibility": "secret"}, "M_INVALID_PARAM"),
        ({"preset": "party"}, "M_INVALID_PARAM"),
        ({"name": 5}, "M_BAD_JSON"),
        ({"invite": ["bob"]}, "M_INVALID_PARAM"),
        ({"invite": [ALICE]}, "M_INVALID_PARAM"),
        ({"invite": "@bob:here.org"}, "M_BAD_JSON"),
        ({"invite_3pid": [{"medium": "email"}]}, "M_THREEPID_DENIED"),
        ({"initial_state": [5]}, "M_BAD_JSON"),
        ({"initial_state": [{"type": "m.room.name"}]}, "M_BAD_JSON"),
        ({"initial_state": [{"type": "m.room.create", "content": {}}]}, "M_INVALID_ROOM_STATE"),
        ({"power_level_content_override": []}, "M_BAD_JSON"),
        ({"invite": [f"@u{n}:here.org" for n in range(101)]}, "M_INVALID_PARAM"),
    ],
)
def test_what_makes_no_room_is_refused(body: dict[str, Any], errcode: str) -> None:
    with pytest.raises(InvalidRoomRequest) as refused:
        parse(**body)
    assert refused.value.errcode == errcode


def test_additional_creators_must_be_users() -> None:
    for value in ("@bob:here.org", ["bob"], [5]):
        with pytest.raises(InvalidRoomRequest):
            create_content(parse(creation_content={"additional_creators": value}))
