"""Who is typing, and who is online: what this process has heard, without any position in the log.

Each board counts its own changes; a token carries the count, which means something to the process that made
it alone. A token of another process gets what is known now.

Spec: C-S API §Typing notifications, §Presence.
"""

from collections import OrderedDict

from matrixcore.identifiers import UserId
from tessera.storage.presence import Presence
from tessera.typing_board import TypingBoard
from tessera.wakes import PresenceChange

__all__ = ["PresenceBoard", "TypingBoard"]

MAX_PRESENCES = 50_000


class PresenceBoard:
    """The newest presence of the users that this process heard of."""

    def __init__(self) -> None:
        self._users: OrderedDict[UserId, tuple[int, Presence]] = OrderedDict()
        self.count = 0

    def apply(self, change: PresenceChange) -> None:
        """Take a change."""
        self.count += 1
        presence = Presence(change.user_id, change.presence, change.status_msg, change.last_active_ms)
        self._users[change.user_id] = (self.count, presence)
        self._users.move_to_end(change.user_id)
        if len(self._users) > MAX_PRESENCES:
            self._users.popitem(last=False)

    def find(self, user_id: UserId) -> Presence | None:
        """What was heard of a user."""
        known = self._users.get(user_id)
        return None if known is None else known[1]

    def changed_since(self, count: int) -> list[Presence]:
        """Everybody's changes after `count`, newest first."""
        found = []
        for changed, presence in reversed(self._users.values()):
            if changed <= count:
                break
            found.append(presence)
        return found
