"""What the PDUs that a batch names refer to, asked for all its rooms at once.

A room's past is asked about event by event (`RoomPast`, `Receiver`); for the PDUs of one transaction, each in a room of
its own, that would be five questions a PDU, one after the other. What is foreseen here is not asked again; whatever is
not, still is. It is good until something is committed.

Spec: none; DESIGN.md sections 2 (10) and 3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from matrixcore.events import Event, InvalidEvent, load_event, parse_event
from matrixcore.identifiers import EventId, RoomId
from services.rooms.hot_rooms import HotRooms
from tessera.commands import Command, ReceivePdus
from tessera.storage import batch_reads
from tessera.storage.batch_reads import Named
from tessera.storage.database import Transaction
from tessera.storage.inbox import InboxRow
from tessera.storage.state_loading import EventPlace

MAX_PDUS = 1_000


@dataclass(frozen=True, slots=True)
class ForeseenRoom:
    """What is known of the events of one room.

    Attributes:
        places: event -> its place, None for those that are not stored.
        events: likewise the events themselves.
        rejected: those of them that were rejected.
        unawaited: events that no stored event redacts and no parked PDU waits for.
        has_gaps: whether the room's history breaks off anywhere; None if that was not asked.
    """

    places: dict[EventId, EventPlace | None] = field(default_factory=dict)
    events: dict[EventId, Event | None] = field(default_factory=dict)
    rejected: set[EventId] = field(default_factory=set)
    unawaited: set[EventId] = field(default_factory=set)
    has_gaps: bool | None = None

    def awaited(self, event_ids: Iterable[EventId]) -> list[EventId]:
        """Those of the events about which one still has to ask whether anything waits for them."""
        return [event_id for event_id in event_ids if event_id not in self.unawaited]


NOTHING = ForeseenRoom()


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What is known of the PDUs of a batch.

    Attributes:
        asked: rows of the inbox that were looked for.
        rows: those of them that are there, by room and ID, and
        parsed: what they hold, if it is an event.
    """

    asked: frozenset[int] = frozenset()
    rows: dict[tuple[RoomId, int], InboxRow] = field(default_factory=dict)
    parsed: dict[int, Event] = field(default_factory=dict)
    rooms: dict[RoomId, ForeseenRoom] = field(default_factory=dict)

    def of_room(self, room_id: RoomId) -> ForeseenRoom:
        """What is known of the events of a room."""
        return self.rooms.get(room_id, NOTHING)

    def find_rows(self, room_id: RoomId, inbox_ids: Sequence[int]) -> list[InboxRow] | None:
        """The rows of a room that are there, in this order; None if they were not looked for."""
        if not self.asked.issuperset(inbox_ids):
            return None
        found = (self.rows.get((room_id, inbox_id)) for inbox_id in dict.fromkeys(inbox_ids))
        return [row for row in found if row is not None]


async def foresee(tx: Transaction, rooms: HotRooms, commands: Sequence[Command]) -> Foreseen:
    """Ask what the writer will ask of the PDUs that these commands name, as far as their rooms are in memory."""
    named = [inbox_id for one in commands if isinstance(one.body, ReceivePdus) for inbox_id in one.body.inbox_ids]
    if len(named) < 2:
        return Foreseen()  # nothing to be shared; and what nobody can ask about breaks no other PDU's command
    foreseen = Foreseen(frozenset(named[:MAX_PDUS]))
    cited: dict[Named, None] = {}
    wanted: dict[Named, None] = {}
    arriving: list[Named] = []
    for room_id, row in await batch_reads.load_inbox(tx, foreseen.asked):
        foreseen.rows[room_id, row.inbox_id] = row
        hot = rooms.find(room_id)
        try:
            event = None if hot is None else parse_event(row.pdu, hot.rules)
        except InvalidEvent:
            continue
        if event is not None and event.room_id == room_id and _is_text(event):
            foreseen.parsed[row.inbox_id] = event
            arriving.append((room_id, event.event_id))
            wanted.update(dict.fromkeys((room_id, one) for one in (event.event_id, *event.prev_events)))
            cited.update(dict.fromkeys((room_id, one) for one in event.auth_events))
    if not arriving:
        return foreseen
    places = await batch_reads.find_places(tx, wanted)
    stored = await batch_reads.load_events(tx, cited)
    awaited = await batch_reads.list_awaited(tx, arriving)
    broken = await batch_reads.list_broken(tx, {room_id for room_id, _ in arriving})
    foreseen.rooms.update((room_id, ForeseenRoom(has_gaps=room_id in broken)) for room_id, _ in arriving)
    for room_id, event_id in wanted:
        foreseen.rooms[room_id].places[event_id] = places.get((room_id, event_id))
    for room_id, event_id in cited:
        _take(foreseen.rooms[room_id], rooms, room_id, event_id, stored.get((room_id, event_id)))
    for room_id, event_id in arriving:
        if (room_id, event_id) not in awaited:
            foreseen.rooms[room_id].unawaited.add(event_id)
    return foreseen


def _is_text(event: Event) -> bool:
    """Whether PostgreSQL knows such event IDs; whoever sends others breaks only what asks about their PDU alone."""
    return all(map(str.isprintable, (event.event_id, *event.prev_events, *event.auth_events)))


def _take(
    room: ForeseenRoom, rooms: HotRooms, room_id: RoomId, event_id: EventId, stored: tuple[bytes, bool] | None
) -> None:
    hot = rooms.find(room_id)
    if stored is None or hot is None:
        room.events[event_id] = None
        return
    room.events[event_id] = load_event(stored[0], event_id, hot.rules, room_id=room_id)
    if stored[1]:
        room.rejected.add(event_id)
