"""What a push notification says of an event and its room, and what judging an event asks of a room shard.

Spec: Push Gateway API, POST /_matrix/push/v1/notify.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction


class PushDetails(NamedTuple):
    """An event with the room around it as it is now; the PDUs are those of state events, None where there is none.

    Attributes:
        name: m.room.name, `alias` m.room.canonical_alias, `sender_member` the sender's m.room.member.
    """

    room_id: RoomId
    event_id: EventId
    type: str
    state_key: str | None
    sender: UserId
    anchor: int | None
    thread_root: EventId | None
    redacted: bool
    pdu: bytes
    name: bytes | None
    alias: bytes | None
    sender_member: bytes | None


_DETAILS = """
SELECT e.room_id, e.event_id, e.type, e.state_key, e.sender, e.anchor, e.thread_root, e.redacted_by IS NOT NULL, e.pdu,
       name.pdu, alias.pdu, member.pdu
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
LEFT JOIN rooms.current_state ns ON ns.room_id = e.room_id AND ns.type = 'm.room.name' AND ns.state_key = ''
LEFT JOIN rooms.events name ON name.room_id = ns.room_id AND name.event_id = ns.event_id
LEFT JOIN rooms.current_state cs ON cs.room_id = e.room_id AND cs.type = 'm.room.canonical_alias' AND cs.state_key = ''
LEFT JOIN rooms.events alias ON alias.room_id = cs.room_id AND alias.event_id = cs.event_id
LEFT JOIN rooms.current_state ms ON ms.room_id = e.room_id AND ms.type = 'm.room.member' AND ms.state_key = e.sender
LEFT JOIN rooms.events member ON member.room_id = ms.room_id AND member.event_id = ms.event_id
"""

# The counters of the event against those just before it, in the main timeline or in the event's thread.
_MENTION_ROOM = """
SELECT e.event_id
FROM unnest($1::text[], $2::text[]) AS w (room_id, event_id)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
LEFT JOIN LATERAL (
    SELECT b.highlight_all_count AS main FROM rooms.events b
    WHERE b.room_id = e.room_id AND b.anchor < e.anchor AND b.anchor IS NOT NULL AND b.sub = 0
    ORDER BY b.anchor DESC, b.sub DESC LIMIT 1
) p ON true
LEFT JOIN LATERAL (
    SELECT b.thread_highlight_all_count AS thread FROM rooms.events b
    WHERE b.room_id = e.room_id AND b.thread_root = e.thread_root AND b.anchor < e.anchor AND b.anchor IS NOT NULL
      AND b.sub = 0
    ORDER BY b.anchor DESC, b.sub DESC LIMIT 1
) t ON e.thread_root IS NOT NULL
WHERE e.highlight_all_count > coalesce(p.main, 0) OR e.thread_highlight_all_count > coalesce(t.thread, 0)
"""


async def list_details(
    tx: Transaction, events: Sequence[tuple[RoomId, EventId]]
) -> dict[tuple[RoomId, EventId], PushDetails]:
    """Those of the events that are there."""
    rows = await tx.fetch(_DETAILS, [one[0] for one in events], [one[1] for one in events])
    return {(row[0], row[1]): PushDetails(*row) for row in rows}


async def list_room_mentions(tx: Transaction, events: Sequence[tuple[RoomId, EventId]]) -> set[EventId]:
    """Those of the events that mention their whole room, by senders who may."""
    rows = await tx.fetch(_MENTION_ROOM, [one[0] for one in events], [one[1] for one in events])
    return {EventId(row[0]) for row in rows}
