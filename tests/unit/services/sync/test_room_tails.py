"""The tails of rooms: what they hold, drop and know of counters. Spec: DESIGN.md section 5."""

from matrixcore.identifiers import EventId, RoomId, UserId
from services.sync.room_tails import MAX_RECORDS_PER_ROOM, RoomTails
from tessera.records import Counters, EventBody, LogRecord, OrderKey, RecordKind, RedactionBody

ROOM = RoomId("!room:here.org")
ALICE = UserId("@alice:here.org")


def event(position: int, *, notify: int = 0, thread: str | None = None, thread_notify: int = 0) -> LogRecord:
    body = EventBody(
        EventId(f"${position}"),
        "m.room.message",
        None,
        ALICE,
        0,
        b'{"event_id":"$%d"' % position,
        thread_root=None if thread is None else EventId(thread),
        counters=Counters(notify, 0, thread_notify, 0),
    )
    return LogRecord(1, 1, position, ROOM, position - 1, RecordKind.EVENT, body)


def test_a_tail_has_everything_above_its_floor() -> None:
    tails = RoomTails()
    assert tails.append(event(1)) is None  # nobody is in the room
    tail = tails.ensure(ROOM, 1, 10)
    assert tails.append(event(10)) is None
    for position in range(11, 11 + MAX_RECORDS_PER_ROOM + 5):
        tails.append(event(position))
    assert tail.floor == 15
    assert [record.position for record in tail.after(tail.last - 2)] == [tail.last - 1, tail.last]
    assert len(tail.after(tail.floor)) == MAX_RECORDS_PER_ROOM


def test_the_oldest_go_when_memory_is_used_up() -> None:
    tails = RoomTails(max_bytes=20_000)
    tail = tails.ensure(ROOM, 1, 0)
    for position in range(1, 100):
        tails.append(event(position))
    assert tails.bytes_held <= 20_000
    assert tail.records[0].position == tail.floor + 1


def test_increments_of_main_timeline_and_threads() -> None:
    tails = RoomTails()
    tail = tails.ensure(ROOM, 1, 0)
    tails.append(event(1, notify=5))
    assert tail.increments[1] is None  # what was before is not known
    tails.append(event(2, notify=6))
    tails.append(event(3, notify=6, thread="$t", thread_notify=4))
    tails.append(event(4, notify=6, thread="$t", thread_notify=5))
    tails.append(event(5, notify=6))
    assert [tail.increments[position] for position in range(2, 6)] == [(1, 0), None, (1, 0), (0, 0)]


def test_a_redacted_event_is_replaced() -> None:
    tails = RoomTails()
    tail = tails.ensure(ROOM, 1, 0)
    tails.append(event(1))
    redaction = RedactionBody(EventId("$1"), EventId("$2"), b'{"redacted":1', OrderKey(1))
    tails.append(LogRecord(1, 1, 2, ROOM, 1, RecordKind.REDACTION_APPLIED, redaction))
    (first, _) = tail.after(0)
    assert first.event.client == b'{"redacted":1'
    assert first.event.redacted


def test_a_missed_range_begins_the_tails_anew() -> None:
    tails = RoomTails()
    tail = tails.ensure(ROOM, 1, 0)
    tails.append(event(1))
    assert tails.forget_partition(2, 50) == []
    assert tails.forget_partition(1, 50) == [tail]
    assert (tail.floor, tail.last, tail.after(50)) == (50, 50, [])
