"""What goes over the channels, as bytes."""

import pytest

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.commands import Outcome, OutcomeStatus
from tessera.fanout.redis import messages
from tessera.records import (
    EventBody,
    LogRecord,
    PartitionBatch,
    Receipt,
    ReceiptsBody,
    RecordKind,
    UnknownRecordVersion,
)
from tessera.wakes import DeviceWake, PresenceChange, SessionEnd, TypingChange

ALICE = UserId("@alice:test.example")
ROOM, OTHER = RoomId("!room:test.example"), RoomId("!øther:test.example")


def event_record(position: int, room_id: RoomId, client: bytes) -> LogRecord:
    body = EventBody(EventId(f"$e{position}"), "m.room.message", None, ALICE, 1, client)
    return LogRecord(2, 7, position, room_id, 0, RecordKind.EVENT, body)


def batch_of(*records: LogRecord) -> PartitionBatch:
    return PartitionBatch(2, 7, records[0].position, records[-1].position, records)


MIXED = batch_of(
    event_record(4, ROOM, '{"body":"new\\nline é"'.encode()),
    LogRecord(2, 7, 5, OTHER, 3, RecordKind.RECEIPTS, ReceiptsBody((Receipt(ALICE, "m.read", "", EventId("$e"), 9),))),
    LogRecord(2, 7, 6, ROOM, 4, RecordKind.GAP, None),
)


def test_a_batch_arrives_whole() -> None:
    assert messages.decode_batch(messages.encode_batch(MIXED), None) == MIXED


def test_only_wanted_records_are_parsed() -> None:
    asked: list[RoomId] = []

    def wants(room_id: RoomId) -> bool:
        asked.append(room_id)
        return room_id == OTHER

    heard = messages.decode_batch(messages.encode_batch(MIXED), wants)
    assert heard.records == MIXED.records[1:2]
    assert (heard.first, heard.last) == (4, 6)
    assert asked == [ROOM, OTHER, ROOM]


def test_a_batch_keeps_below_its_bound() -> None:
    large = [event_record(position, ROOM, b'{"body":"' + b"x" * 60_000 + b'"') for position in range(1, 6)]
    some, all_of_them = messages.encode_batch(batch_of(*large[:4])), messages.encode_batch(batch_of(*large))
    assert 240_000 < len(some) < messages.MAX_MESSAGE_BYTES + 1_000
    assert len(all_of_them) < 100
    assert messages.decode_batch(all_of_them, None) == PartitionBatch(2, 7, 6, 5, ())


def test_a_newer_format_is_not_guessed_at() -> None:
    with pytest.raises(UnknownRecordVersion):
        messages.decode_batch(b"[2,1,7,4,4,[]]\n", None)


def test_outcomes_are_split_by_size() -> None:
    outcomes = [
        Outcome(bytes([number]) * 32, OutcomeStatus.ACCEPTED, 7, body=b"\n" * 20_000, error="ä\n")
        for number in range(10)
    ]
    encoded = messages.encode_outcomes(outcomes)
    assert len(encoded) > 1
    assert max(map(len, encoded)) <= messages.MAX_MESSAGE_BYTES
    assert [outcome for message in encoded for outcome in messages.decode_outcomes(message)] == outcomes


def test_wakes_arrive_as_they_left() -> None:
    device, typing = DeviceWake(5, (ALICE,)), TypingChange(ROOM, ALICE, 30_000)
    presence, end = PresenceChange(ALICE, "online", None, 1_700_000_000_000, True), SessionEnd(ALICE)
    assert messages.decode_device_wake(messages.encode_device_wake(device)) == device
    assert messages.decode_typing(messages.encode_typing(typing)) == typing
    assert messages.decode_presence(messages.encode_presence(presence)) == presence
    assert messages.decode_session_end(messages.encode_session_end(end)) == end


def test_fields_that_a_later_release_adds_are_ignored() -> None:
    assert messages.decode_typing(b'["!r:x","@a:x",1,"new"]') == TypingChange(RoomId("!r:x"), UserId("@a:x"), 1)
    assert messages.decode_device_wake(b'[5,["@a:x"],null]') == DeviceWake(5, (UserId("@a:x"),))


def test_a_device_wake_names_a_bounded_number_of_users() -> None:
    wake = DeviceWake(5, tuple(UserId(f"@user{number}:x") for number in range(5_000)))
    assert len(messages.decode_device_wake(messages.encode_device_wake(wake)).user_ids) == messages.MAX_NAMED_USERS


def test_channels_of_two_servers_do_not_meet() -> None:
    one, two = messages.Channels("one:"), messages.Channels("two:")
    names = [
        name
        for channels in (one, two)
        for name in (
            channels.partition(1),
            channels.user(ALICE),
            channels.replies("1"),
            channels.devices,
            channels.typing,
            channels.presence,
            channels.sessions,
        )
    ]
    assert len(set(names)) == len(names)
