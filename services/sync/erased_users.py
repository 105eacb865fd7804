"""The erased users of this server, whose words who was not joined then gets redacted (`tessera.erased_events`).

Only timelines that reach back before the reader's join hold such events; what comes to a joined user never does.

Spec: C-S API §Account deactivation; MSC4025.
"""

from collections.abc import Set

from matrixcore.identifiers import UserId
from tessera.storage.database import Database
from tessera.storage.erased_users import list_erasures


class ErasedUsers:
    """All erased users of this server, a name each: read once, and then only what is new."""

    def __init__(self) -> None:
        self._users: set[UserId] = set()
        self._position = 0

    async def up_to(self, accounts: Database, position: int) -> Set[UserId]:
        """The users whose erasures have a position up to this one, perhaps more; no query if all are known."""
        while self._position < position:
            async with accounts.reading() as tx:
                found = await list_erasures(tx, self._position)
            if not found:
                break
            self._users.update(erasure.user_id for erasure in found)
            self._position = max(self._position, found[-1].position)
        return self._users
