"""alias_creation_rules and room_list_publication_rules."""

import pytest

from matrixcore.identifiers import RoomAlias, RoomId, UserId
from services.gateway.directory_rules import DirectoryRules
from tessera.config import Settings
from tessera.http.errors import Forbidden

ALICE, BOT = UserId("@alice:x"), UserId("@Bot_7:x")
ROOM, OTHER = RoomId("!room:x"), RoomId("!other:x")
ALIAS, TEAM = RoomAlias("#chat:x"), RoomAlias("#team_a:x")


def rules(*given: dict[str, str]) -> DirectoryRules:
    return DirectoryRules.of(Settings.for_tests(alias_creation_rules=given, room_list_publication_rules=given))


def may(given: DirectoryRules, user_id: UserId, room_id: RoomId, *aliases: RoomAlias) -> bool:
    """Whether the user may publish the room, and with one alias, whether he may make it: the same rules."""
    try:
        given.check_publication(user_id, room_id, aliases)
        published = True
    except Forbidden:
        published = False
    if len(aliases) == 1:
        if published:
            given.check_alias(user_id, room_id, aliases[0])
        else:
            with pytest.raises(Forbidden):
                given.check_alias(user_id, room_id, aliases[0])
    return published


def test_everybody_may_everything_unless_the_operator_says_otherwise() -> None:
    assert may(DirectoryRules.of(Settings.for_tests()), ALICE, ROOM, ALIAS)
    assert may(DirectoryRules(), ALICE, ROOM)


def test_without_a_rule_that_fits_nobody_may() -> None:
    assert not may(rules(), ALICE, ROOM, ALIAS)
    assert not may(rules({"user_id": "@admin:x"}), ALICE, ROOM, ALIAS)


def test_the_first_rule_that_fits_decides() -> None:
    given = rules({"user_id": "@bot_?:x", "action": "deny"}, {"user_id": "*:x"})
    assert may(given, ALICE, ROOM, ALIAS)
    assert not may(given, BOT, ROOM, ALIAS), "case does not count"


def test_all_globs_of_a_rule_must_fit() -> None:
    given = rules({"user_id": "@alice:*", "room_id": "!room:*", "alias": "#team_*"})
    assert may(given, ALICE, ROOM, TEAM)
    assert may(given, ALICE, ROOM, ALIAS, TEAM), "one of the aliases is enough"
    assert not may(given, ALICE, ROOM, ALIAS)
    assert not may(given, ALICE, OTHER, TEAM)
    assert not may(given, BOT, ROOM, TEAM)


def test_a_room_without_aliases_fits_only_rules_for_all_aliases() -> None:
    assert not may(rules({"alias": "#*"}), ALICE, ROOM)
    assert may(rules({"alias": "*"}), ALICE, ROOM)
