"""The newest records of the rooms that somebody here is in, as they came: what wakes are answered from.

A tail holds every record of its room above its floor. Records are dropped oldest first, over all rooms together,
when they exceed the memory set aside.

Spec: DESIGN.md section 5.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import EventBody, LogRecord, RecordKind, RedactionBody, StateBody

if TYPE_CHECKING:
    from services.sync.sliding.room_facts import RoomFacts
    from services.sync.user_states import UserState

MAX_TAIL_BYTES = 48 * 1024 * 1024
MAX_RECORDS_PER_ROOM = 200
RECORD_OVERHEAD_BYTES = 1_200  # what a record takes beside its bytes
MAX_THREADS = 200  # whose counters are known
MAX_MEMBERS = 2_000  # member events kept for one room

_MEMBER = "m.room.member"
_NAMING = frozenset(("m.room.name", "m.room.canonical_alias"))


@dataclass(slots=True, eq=False)
class RoomTail:
    """One room.

    Attributes:
        floor: the tail has every record above it.
        heard_at: when its newest record came, on the monotonic clock.
        counters: (notify, highlight) of the main timeline after the last record; None if they are not known.
        increments: position of an event -> what it added to its thread's (notify, highlight); None if unknown.
        users: those here whose user log has them in the room.
        members: member events in client form, of senders that somebody needed.
        heroes: as shown for a room without a name; None if they have to be read.
        facts: what places the room in the lists of sliding sync; None if nobody asked or they have to be read.
    """

    room_id: RoomId
    partition: int
    floor: int
    records: deque[LogRecord] = field(default_factory=deque)
    last: int = 0
    heard_at: float = 0.0
    counters: tuple[int, int] | None = None
    thread_counters: dict[EventId, tuple[int, int]] = field(default_factory=dict)
    increments: dict[int, tuple[int, int] | None] = field(default_factory=dict)
    users: set["UserState"] = field(default_factory=set)
    members: dict[UserId, bytes] = field(default_factory=dict)
    heroes: tuple[UserId, ...] | None = None
    facts: "RoomFacts | None" = None

    def after(self, position: int) -> list[LogRecord]:
        """The records above a position at or above the floor, in order."""
        found: list[LogRecord] = []
        for record in reversed(self.records):
            if record.position <= position:
                break
            found.append(record)
        found.reverse()
        return found

    def forget(self, position: int) -> None:
        """Drop everything: what lies at or below `position` has to be read from PostgreSQL."""
        self.records.clear()
        self.floor = max(self.floor, position)
        self.last = max(self.last, position)
        self.counters = None
        self.thread_counters.clear()
        self.increments.clear()
        self.members.clear()
        self.heroes = None
        self.facts = None


class RoomTails:
    """All tails of this process."""

    def __init__(self, *, max_bytes: int = MAX_TAIL_BYTES) -> None:
        self.rooms: dict[RoomId, RoomTail] = {}
        self._max_bytes = max_bytes
        self._bytes = 0
        self._order: deque[tuple[RoomTail, LogRecord, int]] = deque()

    def ensure(self, room_id: RoomId, partition: int, head: int) -> RoomTail:
        """The tail of a room; a new one begins at the partition's head."""
        tail = self.rooms.get(room_id)
        if tail is None:
            tail = self.rooms[room_id] = RoomTail(room_id, partition, head, last=head)
        return tail

    def drop(self, room_id: RoomId) -> None:
        """Nobody here is in the room any longer."""
        self.rooms.pop(room_id, None)

    def append(self, record: LogRecord) -> RoomTail | None:
        """Take the next record; answers its tail, or None if nobody here is in the room."""
        tail = self.rooms.get(record.room_id)
        if tail is None:
            return None
        if record.position <= tail.last:
            return None
        self._take(tail, record)
        tail.records.append(record)
        tail.last = record.position
        size = RECORD_OVERHEAD_BYTES
        if isinstance(record.body, EventBody):
            size += len(record.body.client) + len(record.body.prev_content or b"")
        self._order.append((tail, record, size))
        self._bytes += size
        if len(tail.records) > MAX_RECORDS_PER_ROOM:
            self._trim(tail)
        while self._bytes > self._max_bytes:
            self._drop_oldest()
        return tail

    def forget_partition(self, partition: int, position: int) -> list[RoomTail]:
        """Records were missed and cannot be had: the tails of the partition begin anew."""
        affected = [tail for tail in self.rooms.values() if tail.partition == partition]
        for tail in affected:
            tail.forget(position)
        return affected

    @property
    def bytes_held(self) -> int:
        """How much the records take, about."""
        return self._bytes

    def _take(self, tail: RoomTail, record: LogRecord) -> None:
        body = record.body
        if isinstance(body, EventBody):
            _count(tail, record.position, body)
            if body.type == _MEMBER:
                tail.heroes = None
                user_id = UserId(body.state_key or "")
                if user_id in tail.members or len(tail.members) < MAX_MEMBERS:
                    tail.members[user_id] = body.client
            elif body.type in _NAMING:
                tail.heroes = None
        elif isinstance(body, RedactionBody):
            _redact(tail, body)
        elif isinstance(body, StateBody):
            tail.members.clear()
            tail.heroes = None
        elif record.kind is RecordKind.PURGED:
            tail.forget(record.position - 1)

    def _trim(self, tail: RoomTail) -> None:
        record = tail.records.popleft()
        tail.floor = record.position
        tail.increments.pop(record.position, None)

    def _drop_oldest(self) -> None:
        tail, record, size = self._order.popleft()
        self._bytes -= size
        if tail.records and tail.records[0].position <= record.position:
            self._trim(tail)


def _count(tail: RoomTail, position: int, body: EventBody) -> None:
    main = (body.counters.notify, body.counters.highlight_all)
    if body.thread_root is None:
        before, after = tail.counters, main
    else:
        after = (body.counters.thread_notify, body.counters.thread_highlight_all)
        before = tail.thread_counters.get(body.thread_root)
        if len(tail.thread_counters) >= MAX_THREADS:
            tail.thread_counters.clear()
        tail.thread_counters[body.thread_root] = after
    tail.counters = main
    tail.increments[position] = None if before is None else (after[0] - before[0], after[1] - before[1])


def _redact(tail: RoomTail, redaction: RedactionBody) -> None:
    """The target is served redacted before any later record goes out."""
    for index, record in enumerate(tail.records):
        if record.kind is RecordKind.EVENT and record.event.event_id == redaction.event_id:
            body = replace(record.event, client=redaction.client, redacted=True)
            tail.records[index] = replace(record, body=body)
    for user_id, client in tail.members.items():
        if redaction.event_id.encode() in client:
            tail.members[user_id] = redaction.client


def wake(tails: Iterable[RoomTail]) -> None:
    """Wake the polls of everybody in these rooms."""
    for tail in tails:
        for user in tail.users:
            for poll in user.polls:
                poll.wake_for(tail)
