"""What erased users said, for who was not joined then: shown as if it had been redacted.

Only timelines that reach back before the reader's join hold such events; what comes to a joined user never does.

Spec: C-S API §Account deactivation; MSC4025.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from matrixcore.events import load_event, redact_event
from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.room_versions import RoomVersionRules
from matrixcore.visibility import Sight
from tessera.room_visibility import MembershipHistory, sight_of
from tessera.storage.database import Database
from tessera.storage.erased_users import list_erasures
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.relations import Bundle


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


def hide_erased(
    room_id: RoomId,
    rules: RoomVersionRules,
    rows: Sequence[EventRow],
    bundles: Mapping[EventId, Bundle],
    history: MembershipHistory,
    erased: Set[UserId],
) -> tuple[list[EventRow], dict[EventId, Bundle]]:
    """A timeline and its bundled relations as the reader gets them."""

    def is_hidden(row: EventRow) -> bool:
        return (
            row.sender in erased
            and row.redacted_by is None
            and sight_of(row, history, sender_erased=True) is Sight.REDACTED
        )

    def redacted(row: EventRow) -> EventRow:
        event = redact_event(load_event(row.pdu, row.event_id, rules, room_id=room_id))
        return row._replace(pdu=event.pdu, previous_pdu=None, replaces_state=None)

    shown: list[EventRow] = []
    found = dict(bundles)
    for row in rows:
        if is_hidden(row):
            shown.append(redacted(row))
            # Its relations go with it: an edit would tell what the event no longer says.
            found.pop(row.event_id, None)
            continue
        shown.append(row)
        bundle = found.get(row.event_id)
        if bundle is not None and bundle.thread_latest is not None and is_hidden(bundle.thread_latest):
            found[row.event_id] = replace(bundle, thread_latest=redacted(bundle.thread_latest))
    return shown, found
