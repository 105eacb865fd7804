"""Who may make aliases and publish rooms: the operator's alias_creation_rules and room_list_publication_rules."""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixcore.globs import whole_value_matcher
from matrixcore.identifiers import RoomAlias, RoomId, UserId
from tessera.config import Settings
from tessera.config.sections import DirectoryRule
from tessera.http.errors import Forbidden

EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class DirectoryRules:
    """Both lists. The first rule that fits decides; where none fits, nobody may."""

    alias_creation: Sequence[DirectoryRule] = (DirectoryRule(),)
    publication: Sequence[DirectoryRule] = (DirectoryRule(),)

    @classmethod
    def of(cls, settings: Settings) -> "DirectoryRules":
        """As the operator has them."""
        return cls(settings.alias_creation_rules, settings.room_list_publication_rules)

    def check_alias(self, user_id: UserId, room_id: RoomId, alias: RoomAlias) -> None:
        """Raise Forbidden unless the user may give the room this alias."""
        if not _allow(self.alias_creation, user_id, room_id, [alias]):
            raise Forbidden("Not allowed to make this alias")

    def check_publication(self, user_id: UserId, room_id: RoomId, aliases: Sequence[RoomAlias]) -> None:
        """Raise Forbidden unless the user may publish the room, which has these aliases on this server."""
        if not _allow(self.publication, user_id, room_id, aliases):
            raise Forbidden("Not allowed to publish this room")


def _allow(rules: Sequence[DirectoryRule], user_id: UserId, room_id: RoomId, aliases: Sequence[RoomAlias]) -> bool:
    for rule in rules:
        if _fits(rule, user_id, room_id, aliases):
            return rule.action == "allow"
    return False


def _fits(rule: DirectoryRule, user_id: UserId, room_id: RoomId, aliases: Sequence[RoomAlias]) -> bool:
    if not whole_value_matcher(rule.user_id)(user_id) or not whole_value_matcher(rule.room_id)(room_id):
        return False
    if rule.alias == EVERYTHING:  # a room without any alias too
        return True
    matches = whole_value_matcher(rule.alias)
    return any(matches(alias) for alias in aliases)
