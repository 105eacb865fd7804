"""What erased users said, for who was not joined then: shown as if it had been redacted.

Spec: C-S API §Account deactivation; MSC4025.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace

from matrixcore.events import load_event, redact_event
from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.room_versions import RoomVersionRules
from matrixcore.visibility import Sight
from tessera.room_visibility import MembershipHistory, sight_of
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.relations import Bundle


def is_unheard(row: EventRow, history: MembershipHistory) -> bool:
    """Whether the reader would see the event redacted if its sender were erased."""
    return row.redacted_by is None and sight_of(row, history, sender_erased=True) is Sight.REDACTED


def unheard_senders(
    rows: Sequence[EventRow], bundles: Mapping[EventId, Bundle], history: MembershipHistory
) -> set[UserId]:
    """Whose erasure would change what the reader sees of these events and of what is bundled with them."""
    latest = (bundle.thread_latest for bundle in bundles.values())
    shown: Iterable[EventRow] = (*rows, *(row for row in latest if row is not None))
    return {row.sender for row in shown if is_unheard(row, history)}


def redacted_row(row: EventRow, rules: RoomVersionRules, room_id: RoomId) -> EventRow:
    """An event as if it had been redacted, for one reader."""
    event = redact_event(load_event(row.pdu, row.event_id, rules, room_id=room_id))
    return row._replace(pdu=event.pdu, previous_pdu=None, replaces_state=None)


def hide_erased(
    room_id: RoomId,
    rules: RoomVersionRules,
    rows: Sequence[EventRow],
    bundles: Mapping[EventId, Bundle],
    history: MembershipHistory,
    erased: Set[UserId],
) -> tuple[list[EventRow], dict[EventId, Bundle]]:
    """Events and what is bundled with them, as the reader gets them."""

    def is_hidden(row: EventRow) -> bool:
        return row.sender in erased and is_unheard(row, history)

    shown: list[EventRow] = []
    found = dict(bundles)
    for row in rows:
        if is_hidden(row):
            shown.append(redacted_row(row, rules, room_id))
            # Its relations go with it: an edit would tell what the event no longer says.
            found.pop(row.event_id, None)
            continue
        shown.append(row)
        bundle = found.get(row.event_id)
        if bundle is not None and bundle.thread_latest is not None and is_hidden(bundle.thread_latest):
            found.pop(bundle.thread_latest.event_id, None)
            found[row.event_id] = replace(bundle, thread_latest=redacted_row(bundle.thread_latest, rules, room_id))
    return shown, found
