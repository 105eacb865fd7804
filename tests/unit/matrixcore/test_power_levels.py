"""The view on power levels, and the rule for changing them."""

from typing import Any

import pytest
from auth_room import ALICE, ALL, BOB, CREATOR, EVE, AuthRoom, since, until

from matrixcore.power_levels import CREATOR_POWER, PowerLevels, creators_of, parse_level
from matrixcore.room_versions import ROOM_VERSIONS


@pytest.mark.parametrize(
    ("value", "old", "new"),
    [
        (50, 50, 50),
        (-1, -1, -1),
        ("100", 100, None),
        ("000100", 100, None),
        ("+100", 100, None),
        (" -100 ", -100, None),
        ("1.5", None, None),
        ("1_0", None, None),
        ("٣", None, None),
        ("", None, None),
        ("9" * 5000, None, None),
        (50.57, 50, None),
        (-0.9, 0, None),
        (True, None, None),
        (None, None, None),
        ([1], None, None),
        ({}, None, None),
    ],
)
def test_values_of_levels(value: object, old: int | None, new: int | None) -> None:
    assert parse_level(value, ROOM_VERSIONS["1"]) == parse_level(value, ROOM_VERSIONS["9"]) == old
    assert parse_level(value, ROOM_VERSIONS["10"]) == parse_level(value, ROOM_VERSIONS["12"]) == new


def levels_of(room: AuthRoom) -> PowerLevels:
    return PowerLevels.of(room.state.get(("m.room.power_levels", "")), room.create)


@pytest.mark.parametrize("version", ALL)
def test_defaults_without_an_event(version: str) -> None:
    levels = levels_of(AuthRoom(version))
    assert levels.user_level(CREATOR) == (CREATOR_POWER if version == "12" else 100)
    assert levels.user_level(ALICE) == 0
    assert levels.required_for("m.room.name", is_state=True) == 50
    assert levels.required_for("m.room.message", is_state=False) == 0
    names = ("ban", "kick", "redact", "invite")
    assert [levels.named(name) for name in names] == [50, 50, 50, 0]
    assert levels.required_for_notification() == 50


@pytest.mark.parametrize("version", ALL)
def test_levels_of_an_event(version: str) -> None:
    room = AuthRoom(version)
    room.put(
        "m.room.power_levels",
        "",
        {
            "users": {ALICE: 60},
            "users_default": 5,
            "events": {"m.room.name": 10, "m.room.message": 20},
            "events_default": 1,
            "state_default": 2,
            "kick": 55,
            "ban": 70,
            "notifications": {"room": 6},
        },
    )
    levels = levels_of(room)
    assert levels.user_level(CREATOR) == (CREATOR_POWER if version == "12" else 5)  # no 100 beside an event
    assert (levels.user_level(ALICE), levels.user_level(BOB)) == (60, 5)
    assert levels.required_for("m.room.name", is_state=True) == 10
    assert levels.required_for("m.room.topic", is_state=True) == 2
    assert levels.required_for("x", is_state=False) == 1
    assert levels.required_for_notification() == 6
    assert levels.may_kick(ALICE, BOB)
    assert not levels.may_ban(ALICE, BOB)
    assert not levels.may_kick(ALICE, ALICE)
    assert levels.may_redact_others(ALICE)
    assert not levels.may_redact_others(BOB)


def test_creators() -> None:
    assert creators_of(AuthRoom("10", creator=ALICE).create) == {ALICE}
    assert creators_of(AuthRoom("11", creator=ALICE, additional_creators=[BOB]).create) == {CREATOR}
    room = AuthRoom("12", additional_creators=[BOB])
    assert creators_of(room.create) == {CREATOR, BOB}
    levels = levels_of(room)
    assert levels.user_level(BOB) == CREATOR_POWER > 2**53
    assert not levels.may_kick(CREATOR, BOB)


def test_unusable_values_count_as_missing() -> None:
    room = AuthRoom("9")
    room.put("m.room.power_levels", "", {"users": "x", "events": [], "ban": "much", "users_default": None})
    levels = levels_of(room)
    assert (levels.user_level(ALICE), levels.named("ban"), levels.required_for("x", is_state=True)) == (0, 50, 50)


BASE = {
    "users": {ALICE: 50, BOB: 50, EVE: 10},
    "events": {"m.room.name": 50, "m.room.topic": 60},
    "ban": 50,
    "kick": 60,
}


def after(**changes: Any) -> dict[str, Any]:
    """BASE with keys set, or removed where the value is `...`; nested ones by name."""
    content: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in changes.items():
        if isinstance(value, dict):
            merged = {**content.get(key, {}), **value}
            content[key] = {name: level for name, level in merged.items() if level is not ...}
        elif value is ...:
            content.pop(key)
        else:
            content[key] = value
    return content


# (what ALICE, who has 50, does; versions; new content; allowed)
CHANGES = [
    ("nothing", ALL, after(), True),
    ("raises ban to her level", ALL, after(ban=50), True),
    ("lowers ban", ALL, after(ban=0), True),
    ("raises ban above her level", ALL, after(ban=51), False),
    ("lowers what was above her level", ALL, after(kick=10), False),
    ("removes what was above her level", ALL, after(kick=...), False),
    ("removes what was at her level", ALL, after(ban=...), True),
    ("adds a level at hers", ALL, after(invite=50), True),
    ("adds a level above hers", ALL, after(invite=51), False),
    ("adds users_default above hers", ALL, after(users_default=51), False),
    ("changes an event type at her level", ALL, after(events={"m.room.name": 20}), True),
    ("raises an event type above hers", ALL, after(events={"m.room.name": 51}), False),
    ("lowers an event type that was above hers", ALL, after(events={"m.room.topic": 50}), False),
    ("removes an event type that was above hers", ALL, after(events={"m.room.topic": ...}), False),
    ("removes an event type at hers", ALL, after(events={"m.room.name": ...}), True),
    ("adds an event type at hers", ALL, after(events={"x": 50}), True),
    ("adds an event type above hers", ALL, after(events={"x": 51}), False),
    ("adds a notification level above hers", until(5), after(notifications={"room": 51}), True),
    ("adds a notification level above hers", since(6), after(notifications={"room": 51}), False),
    ("adds a notification level at hers", ALL, after(notifications={"room": 50}), True),
    ("lowers herself", ALL, after(users={ALICE: 0}), True),
    ("removes herself", ALL, after(users={ALICE: ...}), True),
    ("raises herself", ALL, after(users={ALICE: 51}), False),
    ("lowers her equal", ALL, after(users={BOB: 49}), False),
    ("removes her equal", ALL, after(users={BOB: ...}), False),
    ("lowers somebody below her", ALL, after(users={EVE: 0}), True),
    ("raises somebody to her level", ALL, after(users={EVE: 50}), True),
    ("raises somebody above her", ALL, after(users={EVE: 51}), False),
    ("adds somebody at her level", ALL, after(users={"@new:x": 50}), True),
    ("adds somebody above her", ALL, after(users={"@new:x": 51}), False),
    ("names no user", ALL, after(users={"alice": 1}), False),
    ("gives a level as a word", ALL, after(users={EVE: "much"}), False),
    ("gives a level as a boolean", ALL, after(users={EVE: True}), False),
    ("gives a level as a string", until(9), after(users={EVE: " 12 "}), True),
    ("gives a level as a string", since(10), after(users={EVE: "12"}), False),
    ("gives her own level as a string", until(9), after(ban="50"), True),
    ("gives a named level as a string", since(10), after(ban="50"), False),
    ("gives an event level as a string", since(10), after(events={"m.room.name": "50"}), False),
    ("gives a notification level as a string", since(10), after(notifications={"room": "50"}), False),
    ("makes users a list", ALL, {**after(), "users": []}, False),
    ("makes events a list", since(10), {**after(), "events": []}, False),
    ("makes notifications a list", since(10), {**after(), "notifications": []}, False),
    ("lists the creator", ("12",), after(users={CREATOR: 10}), False),
]


@pytest.mark.parametrize(
    ("version", "content", "allowed"),
    [
        pytest.param(version, content, allowed, id=f"v{version} {what}")
        for what, versions, content, allowed in CHANGES
        for version in versions
    ],
)
def test_alice_changes_power_levels(version: str, content: dict[str, Any], allowed: bool) -> None:
    room = AuthRoom(version)
    room.member(ALICE, "join")
    room.put("m.room.power_levels", "", BASE)
    assert room.allows(room.event("m.room.power_levels", "", content, ALICE)) is allowed


@pytest.mark.parametrize("version", ALL)
def test_the_first_power_levels(version: str) -> None:
    room = AuthRoom(version)
    users = {} if version == "12" else {CREATOR: 100}
    assert room.allows(room.event("m.room.power_levels", "", {"users": users, "ban": 1000}))
    assert not room.allows(room.event("m.room.power_levels", "", {"users": {"nobody": 1}}))


def test_additional_creators_cannot_be_listed_and_creators_change_everything() -> None:
    room = AuthRoom("12", additional_creators=[BOB])
    room.member(BOB, "join")
    room.put("m.room.power_levels", "", {"users": {ALICE: 2**53 - 1}, "ban": 2**53 - 1})
    assert room.allows(room.event("m.room.power_levels", "", {"users": {}}, BOB))
    assert not room.allows(room.event("m.room.power_levels", "", {"users": {BOB: 1}}, CREATOR))


def test_float_levels_of_old_rooms() -> None:
    levels = PowerLevels({"users": {BOB: 50.57}}, frozenset(), ROOM_VERSIONS["5"])
    assert levels.user_level(BOB) == 50
