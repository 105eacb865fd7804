"""Records of room.log: what a commit of the room writer tells everybody else.

A record is small and self-contained. The writer makes it once, beside the commit; the partition
channels and room.log carry it, and whoever missed it reads the same record back from
PostgreSQL (`tessera.storage.records`). Positions are dense in a partition and incarnation, so
loss is found by arithmetic.

Spec: none; DESIGN.md sections 2 and 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId

RECORD_VERSION = 1


class UnknownRecordVersion(Exception):
    """A record of a format that this process does not know: the consumer's partition stops with an alarm."""


class RecordKind(IntEnum):
    """What a record says."""

    EVENT = 1
    STATE = 2  # a change of current state that no timeline event explains
    GAP = 3  # of a room: events before the next one are missing; of no room: the partition's incarnation was raised
    REDACTION_APPLIED = 4
    RECEIPTS = 5
    DEVICE_LISTS = 6
    PURGED = 7


class OrderKey(NamedTuple):
    """Where an event stands in its room: (p, 0) live at position p, (p, -1), (p, -2)... backfilled below it."""

    anchor: int
    sub: int = 0


class Counters(NamedTuple):
    """Cumulative unread counters of the room after an event (DESIGN section 5)."""

    notify: int = 0  # main timeline, events that notify an ordinary member
    highlight_all: int = 0  # of these, events that highlight for everybody (@room)
    thread_notify: int = 0  # the same for the event's own thread; 0 outside threads
    thread_highlight_all: int = 0


NO_COUNTERS = Counters()


@dataclass(frozen=True, slots=True)
class EventBody:
    """The body of an EVENT record.

    `client` is the client form without closing brace (DESIGN section 4, Bytes): event_id, type,
    state_key, sender, origin_server_ts, content, redacts; no room_id, no unsigned.
    """

    event_id: EventId
    type: str
    state_key: str | None
    sender: UserId
    origin_server_ts: int
    client: bytes
    membership: str | None = None  # of an m.room.member event
    sender_device: str | None = None
    txn_id: str | None = None
    replaces_state: EventId | None = None
    prev_content: bytes | None = None  # JSON of the replaced state's content
    history_visibility: str = "shared"  # before the event
    forked: bool = False  # the room was forked here: state at the event differs from current state
    servers: tuple[ServerName, ...] = ()  # other servers that must hear of the event: see placing.recipients
    redacts: EventId | None = None
    relates_to: EventId | None = None
    rel_type: str | None = None
    thread_root: EventId | None = None
    counters: Counters = NO_COUNTERS
    mentions: tuple[UserId, ...] = ()  # local users for whom the event highlights by name
    joined_count: int = 0  # members after the event
    invited_count: int = 0
    stripped_state: bytes | None = None  # JSON array, of an invite or knock of a local user
    redacted: bool = False  # `client` is already the redacted form
    forwarded: bool = False  # of another server's user, accepted on its behalf: this server passes it on to the others


@dataclass(frozen=True, slots=True)
class StateMembership:
    """The membership that a STATE record gave one of this server's users."""

    user_id: UserId
    membership: str  # "leave" where the member event is gone
    event_id: EventId  # of the member event; where it is gone, of the one that stood there
    sender: UserId
    stripped_state: bytes | None = None  # JSON array, of an invite or knock


@dataclass(frozen=True, slots=True)
class StateBody:
    """Current state changed without a timeline event: (type, state key, new event or None if it is gone).

    `memberships` are those of local users among the changes, so that nobody has to read them back.
    """

    changes: tuple[tuple[str, str, EventId | None], ...]
    staged: str | None = None  # names the data of a bulk change in storage
    memberships: tuple[StateMembership, ...] = ()


@dataclass(frozen=True, slots=True)
class RedactionBody:
    """`event_id` was swapped for its redacted form `client` because of `redaction_id`."""

    event_id: EventId
    redaction_id: EventId
    client: bytes
    order: OrderKey


@dataclass(frozen=True, slots=True)
class Receipt:
    """One public receipt of a user in a room."""

    user_id: UserId
    receipt_type: str
    thread_id: str  # "" unthreaded
    event_id: EventId
    ts: int  # milliseconds


@dataclass(frozen=True, slots=True)
class ReceiptsBody:
    """Receipts gathered for one room."""

    receipts: tuple[Receipt, ...]


RecordBody = EventBody | StateBody | RedactionBody | ReceiptsBody | None


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One position of a partition.

    Attributes:
        traceparent: of the trace that follows it (tessera.tracing); it travels and is not stored.
    """

    incarnation: int
    partition: int
    position: int
    room_id: RoomId
    room_previous: int  # position of the room's record before, 0 for the first
    kind: RecordKind
    body: RecordBody
    traceparent: str = field(default="", compare=False)

    @property
    def event(self) -> EventBody:
        """The body of an EVENT record; a programming error for any other."""
        assert isinstance(self.body, EventBody)
        return self.body


@dataclass(frozen=True, slots=True)
class PartitionBatch:
    """What one commit appended to one partition: records first..last without a hole.

    The fan-out may leave out records of rooms that the listener does not want. A batch with `first` above `last` has
    no records: the partition has come to `last`, and what it has there is to be read.
    """

    incarnation: int
    partition: int
    first: int
    last: int
    records: tuple[LogRecord, ...]


def encode_body(body: RecordBody) -> bytes | None:
    """The stored and transported form of a body that is not an event; None for None."""
    match body:
        case StateBody(changes, staged, memberships):
            return orjson.dumps([changes, staged, [_state_membership_fields(one) for one in memberships]])
        case RedactionBody(event_id, redaction_id, client, order):
            return orjson.dumps([event_id, redaction_id, client.decode(), list(order)])
        case ReceiptsBody(receipts):
            return orjson.dumps([[r.user_id, r.receipt_type, r.thread_id, r.event_id, r.ts] for r in receipts])
        case EventBody():
            return _encode_event(body)
        case None:
            return None


def decode_body(kind: RecordKind, data: bytes | None) -> RecordBody:
    """The inverse of encode_body."""
    return None if data is None else _body_of(kind, orjson.loads(data))


def _body_of(kind: RecordKind, value: Any) -> RecordBody:
    match kind:
        case RecordKind.EVENT:
            return _decode_event(value)
        case RecordKind.STATE:
            return _decode_state(value)
        case RecordKind.REDACTION_APPLIED:
            return RedactionBody(value[0], value[1], value[2].encode(), OrderKey(*value[3]))
        case RecordKind.RECEIPTS:
            return ReceiptsBody(tuple(Receipt(*fields) for fields in value))
        case _:
            return None


def encode_record(record: LogRecord) -> bytes:
    """A record as bytes for a topic or channel: a JSON array that begins with the format's version."""
    body = encode_body(record.body)
    head: list[Any] = [
        RECORD_VERSION,
        record.incarnation,
        record.partition,
        record.position,
        record.room_id,
        record.room_previous,
        int(record.kind),
        None if body is None else orjson.Fragment(body),
    ]
    if record.traceparent:
        head.append(record.traceparent)
    return orjson.dumps(head)


def decode_record(data: bytes) -> LogRecord:
    """The inverse of encode_record.

    Raises:
        UnknownRecordVersion: made by a newer process.
    """
    value = orjson.loads(data)
    if value[0] != RECORD_VERSION:
        raise UnknownRecordVersion(str(value[0]))
    _, incarnation, partition, position, room_id, room_previous, kind, body, *traced = value
    record_kind = RecordKind(kind)
    decoded = None if body is None else _body_of(record_kind, body)
    return LogRecord(incarnation, partition, position, room_id, room_previous, record_kind, decoded, *traced[:1])


def encode_batch(batch: PartitionBatch) -> bytes:
    """A batch for a partition channel: one line of JSON with rooms, positions, kinds and lengths, then the bodies.

    A reader that follows none of the rooms skips the bodies without parsing them.
    """
    bodies = [encode_record(record) for record in batch.records]
    head = [
        RECORD_VERSION,
        batch.incarnation,
        batch.partition,
        batch.first,
        batch.last,
        [[r.room_id, r.position, int(r.kind), len(b)] for r, b in zip(batch.records, bodies, strict=True)],
    ]
    return b"".join([orjson.dumps(head), b"\n", *bodies])


def split_batch(data: bytes) -> tuple[list[Any], list[bytes]]:
    """(head, still encoded bodies) of an encoded batch; decode_record parses the bodies that matter.

    Raises:
        UnknownRecordVersion: made by a newer process.
    """
    line_end = data.index(b"\n")
    head = orjson.loads(data[:line_end])
    if head[0] != RECORD_VERSION:
        raise UnknownRecordVersion(str(head[0]))
    bodies: list[bytes] = []
    start = line_end + 1
    for _, _, _, length in head[5]:
        bodies.append(data[start : start + length])
        start += length
    return head, bodies


def decode_batch(data: bytes) -> PartitionBatch:
    """The inverse of encode_batch, every body parsed."""
    head, bodies = split_batch(data)
    return PartitionBatch(head[1], head[2], head[3], head[4], tuple(decode_record(body) for body in bodies))


def _state_membership_fields(one: StateMembership) -> list[str | None]:
    stripped = None if one.stripped_state is None else one.stripped_state.decode()
    return [one.user_id, one.membership, one.event_id, one.sender, stripped]


def _decode_state(value: list[Any]) -> StateBody:
    memberships = tuple(
        StateMembership(user_id, membership, event_id, sender, None if stripped is None else stripped.encode())
        for user_id, membership, event_id, sender, stripped in value[2]
    )
    return StateBody(tuple((t, k, e) for t, k, e in value[0]), value[1], memberships)


def _encode_event(body: EventBody) -> bytes:
    fields: Sequence[Any] = (
        body.event_id,
        body.type,
        body.state_key,
        body.sender,
        body.origin_server_ts,
        body.client.decode(),
        body.membership,
        body.sender_device,
        body.txn_id,
        body.replaces_state,
        None if body.prev_content is None else body.prev_content.decode(),
        body.history_visibility,
        body.forked,
        body.servers,
        body.redacts,
        body.relates_to,
        body.rel_type,
        body.thread_root,
        list(body.counters),
        body.mentions,
        body.joined_count,
        body.invited_count,
        None if body.stripped_state is None else body.stripped_state.decode(),
        body.redacted,
        *((True,) if body.forwarded else ()),
    )
    return orjson.dumps(fields)


def _decode_event(value: list[Any]) -> EventBody:
    value[5] = value[5].encode()
    value[10] = None if value[10] is None else value[10].encode()
    value[13] = tuple(value[13])
    value[18] = Counters(*value[18])
    value[19] = tuple(value[19])
    value[22] = None if value[22] is None else value[22].encode()
    return EventBody(*value)
