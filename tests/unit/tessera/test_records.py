"""Records as bytes for topics and channels. Spec: DESIGN.md section 4."""

import pytest

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from tessera.memberships import changes_of_records
from tessera.records import (
    EventBody,
    LogRecord,
    OrderKey,
    PartitionBatch,
    Receipt,
    ReceiptsBody,
    RecordBody,
    RecordKind,
    RedactionBody,
    StateBody,
    StateMembership,
    UnknownRecordVersion,
    decode_batch,
    decode_record,
    encode_batch,
    encode_record,
)

ROOM = RoomId("!room:here.org")
ALICE, BOB = UserId("@alice:here.org"), UserId("@bob:here.org")
FAR = UserId("@far:away.org")

CHANGED = StateBody(
    (("m.room.member", ALICE, EventId("$a")), ("m.room.member", BOB, None), ("m.room.topic", "", EventId("$t"))),
    None,
    (
        StateMembership(ALICE, "invite", EventId("$a"), FAR, b'[{"type":"m.room.create"}]'),
        StateMembership(BOB, "leave", EventId("$b"), BOB),
    ),
)
BODIES: list[tuple[RecordKind, RecordBody]] = [
    (
        RecordKind.EVENT,
        EventBody(EventId("$e"), "m.room.message", None, ALICE, 5, b'{"event_id":"$e"', mentions=(BOB,)),
    ),
    (RecordKind.STATE, CHANGED),
    (RecordKind.STATE, StateBody((), "staged")),
    (RecordKind.REDACTION_APPLIED, RedactionBody(EventId("$e"), EventId("$r"), b"{", OrderKey(3))),
    (RecordKind.RECEIPTS, ReceiptsBody((Receipt(BOB, "m.read", "", EventId("$e"), 7),))),
    (RecordKind.GAP, None),
]


def record(kind: RecordKind, body: RecordBody, position: int = 9) -> LogRecord:
    return LogRecord(2, 1, position, ROOM, position - 1, kind, body)


@pytest.mark.parametrize(("kind", "body"), BODIES)
def test_a_record_reads_back_as_it_was_written(kind: RecordKind, body: RecordBody) -> None:
    one = record(kind, body)
    assert decode_record(encode_record(one)) == one


def test_a_batch_reads_back_as_it_was_written() -> None:
    records = tuple(record(kind, body, position) for position, (kind, body) in enumerate(BODIES, 5))
    batch = PartitionBatch(2, 1, 5, 4 + len(BODIES), records)
    assert decode_batch(encode_batch(batch)) == batch


def test_a_newer_format_is_an_alarm() -> None:
    with pytest.raises(UnknownRecordVersion):
        decode_record(encode_record(record(RecordKind.GAP, None)).replace(b"[1,", b"[99,", 1))


def test_memberships_come_from_events_and_from_resolutions() -> None:
    joined = EventBody(EventId("$j"), "m.room.member", ALICE, ALICE, 5, b"{", membership="join")
    lost = EventBody(EventId("$l"), "m.room.member", ALICE, ALICE, 5, b"{")  # another one became current
    far = EventBody(EventId("$f"), "m.room.member", FAR, FAR, 5, b"{", membership="join")
    records = [record(RecordKind.EVENT, body, position) for position, body in enumerate((joined, lost, far), 1)]
    changes = changes_of_records([*records, record(RecordKind.STATE, CHANGED, 4)], ServerName("here.org"))
    assert [(one.user_id, one.membership, one.position, one.event_id) for one in changes] == [
        (ALICE, "join", 1, "$j"),
        (ALICE, "invite", 4, "$a"),
        (BOB, "leave", 4, "$b"),
    ]
    assert changes[1].stripped_state == b'[{"type":"m.room.create"}]'
