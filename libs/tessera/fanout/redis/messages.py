"""Channels and what goes over them.

A batch is one line of JSON with rooms, positions, kinds and lengths, then the records' bytes, so that a reader parses
only those of rooms that it holds. Everything else is a short JSON array whose later fields may be added: readers take
those that they know.
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from matrixcore.identifiers import RoomId, UserId
from tessera.commands import Outcome, decode_outcome, encode_outcome
from tessera.records import (
    RECORD_VERSION,
    PartitionBatch,
    UnknownRecordVersion,
    decode_record,
    encode_record,
)
from tessera.wakes import DeviceWake, PresenceChange, SessionEnd, TypingChange

MAX_MESSAGE_BYTES = 256 << 10
MAX_NAMED_USERS = 1_000  # in a device wake; readers look the changes up by position


class Channels:
    """The names of the channels below one prefix."""

    def __init__(self, prefix: str) -> None:
        self._partition = f"{prefix}p:"
        self._user = f"{prefix}u:"
        self._replies = f"{prefix}r:"
        self.devices = f"{prefix}devices".encode()
        self.typing = f"{prefix}typing".encode()
        self.presence = f"{prefix}presence".encode()
        self.sessions = f"{prefix}sessions".encode()

    def partition(self, partition: int) -> bytes:
        """Batches of one partition."""
        return f"{self._partition}{partition}".encode()

    def user(self, user_id: UserId) -> bytes:
        """Wakes of one user."""
        return f"{self._user}{user_id}".encode()

    def replies(self, address: str) -> bytes:
        """Outcomes of the commands of one gateway."""
        return f"{self._replies}{address}".encode()


def encode_batch(batch: PartitionBatch) -> bytes:
    """A batch; one that is too large says only where the partition now is."""
    bodies: list[bytes] = []
    index: list[list[Any]] = []
    size = 0
    for record in batch.records:
        body = encode_record(record)
        size += len(body)
        if size > MAX_MESSAGE_BYTES:
            return orjson.dumps([RECORD_VERSION, batch.incarnation, batch.partition, batch.last + 1, batch.last, []])
        bodies.append(body)
        index.append([record.room_id, record.position, int(record.kind), len(body)])
    head = [RECORD_VERSION, batch.incarnation, batch.partition, batch.first, batch.last, index]
    return b"".join([orjson.dumps(head), b"\n", *bodies])


def decode_batch(data: bytes, wants_room: Callable[[RoomId], bool] | None) -> PartitionBatch:
    """The batch with the records of the wanted rooms, or of all.

    Raises:
        UnknownRecordVersion: made by a newer process.
    """
    line_end = data.find(b"\n")
    head = orjson.loads(data if line_end < 0 else memoryview(data)[:line_end])
    if head[0] != RECORD_VERSION:
        raise UnknownRecordVersion(str(head[0]))
    records = []
    start = line_end + 1
    for room_id, _, _, length in head[5]:
        if wants_room is None or wants_room(room_id):
            records.append(decode_record(data[start : start + length]))
        start += length
    return PartitionBatch(head[1], head[2], head[3], head[4], tuple(records))


def encode_outcomes(outcomes: Sequence[Outcome]) -> list[bytes]:
    """Outcomes for one gateway, one a line, in messages of bounded size."""
    messages: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    for outcome in outcomes:
        part = encode_outcome(outcome)
        if parts and size + len(part) > MAX_MESSAGE_BYTES:
            messages.append(b"\n".join(parts))
            parts, size = [], 0
        parts.append(part)
        size += len(part) + 1
    if parts:
        messages.append(b"\n".join(parts))
    return messages


def decode_outcomes(data: bytes) -> list[Outcome]:
    """The inverse of each of encode_outcomes' messages."""
    return [decode_outcome(part) for part in data.split(b"\n")]


def encode_device_wake(wake: DeviceWake) -> bytes:
    """Of very many users only the first are named."""
    return orjson.dumps([wake.position, wake.user_ids[:MAX_NAMED_USERS]])


def decode_device_wake(data: bytes) -> DeviceWake:
    """The inverse of encode_device_wake."""
    position, user_ids = orjson.loads(data)[:2]
    return DeviceWake(position, tuple(user_ids))


def encode_typing(change: TypingChange) -> bytes:
    """A change of typing."""
    return orjson.dumps([change.room_id, change.user_id, change.timeout_ms])


def decode_typing(data: bytes) -> TypingChange:
    """The inverse of encode_typing."""
    room_id, user_id, timeout_ms = orjson.loads(data)[:3]
    return TypingChange(room_id, user_id, timeout_ms)


def encode_presence(change: PresenceChange) -> bytes:
    """A change of presence."""
    return orjson.dumps(
        [change.user_id, change.presence, change.status_msg, change.last_active_ms, change.currently_active]
    )


def decode_presence(data: bytes) -> PresenceChange:
    """The inverse of encode_presence."""
    user_id, presence, status_msg, last_active_ms, currently_active = orjson.loads(data)[:5]
    return PresenceChange(user_id, presence, status_msg, last_active_ms, currently_active)


def encode_session_end(end: SessionEnd) -> bytes:
    """An ended session."""
    return orjson.dumps([end.user_id, end.device_id])


def decode_session_end(data: bytes) -> SessionEnd:
    """The inverse of encode_session_end."""
    user_id, device_id = orjson.loads(data)[:2]
    return SessionEnd(user_id, device_id)
