"""The Fetch request with a session, version 11 (Kafka 2.3 and newer), written and read by hand.

In a session the broker remembers which partitions are read from where: a request names those that moved, an answer
those that have something new. So a round costs what changed and not how many partitions there are, on both sides;
aiokafka's own requests name all of them each time, encoded and decoded field by field.

Spec: Kafka protocol, Fetch API; KIP-227.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from struct import Struct
from typing import NamedTuple

from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Schema
from aiokafka.record.memory_records import MemoryRecords

_API_KEY = 1
_API_VERSION = 11
_ANY_REPLICA = -1
_READ_UNCOMMITTED = 0
_NO_LEADER_EPOCH = -1
NO_SESSION = 0
SESSIONLESS = -1  # as an epoch: the request stands for itself

_REQUEST = Struct(">iiiibii")  # replica, wait, least bytes, most bytes, isolation, session, epoch
_WANTED = Struct(">iiqqi")  # partition, leader's epoch, offset, log start (of followers), most bytes
_COUNT = Struct(">i")
_SHORT = Struct(">h")
_ANSWER = Struct(">ihi")  # throttle, error, session
_PARTITION = Struct(">ihqqqi")  # partition, error, highwater, stable, log start, aborted transactions
_REPLICA_AND_SIZE = Struct(">ii")
_ABORTED_BYTES = 16


class FetchedRecord(NamedTuple):
    """One record as it lies in a topic; `timestamp` in milliseconds, as its producer says."""

    partition: int
    offset: int
    timestamp: int
    value: bytes
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class FetchedPartition:
    """What an answer says of one partition.

    Attributes:
        error: 0 if there is none.
        highwater: the offset after its newest record.
        data: record batches, the last of which may be cut off.
    """

    partition: int
    error: int
    highwater: int
    data: bytes

    def records(self, offset: int) -> tuple[list[FetchedRecord], int]:
        """The records from an offset on, and the offset after what was read.

        Raises:
            CorruptRecordException: a check-sum is wrong.
        """
        found: list[FetchedRecord] = []
        end = offset
        batches = MemoryRecords(self.data)
        while batches.has_next():
            batch = batches.next_batch()
            if not batch.validate_crc():
                raise CorruptRecordException(f"a check-sum of partition {self.partition} is wrong")
            if not batch.is_control_batch:
                found += [
                    FetchedRecord(self.partition, one.offset, one.timestamp, one.value or b"", one.headers)
                    for one in batch
                    if one.offset >= offset
                ]
            end = max(end, batch.next_offset)
        return found, end


@dataclass(frozen=True, slots=True)
class FetchAnswer:
    """What a broker answered: in a session only the partitions of which there is news."""

    error: int
    session: int
    partitions: Sequence[FetchedPartition]


class _FetchResponse(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    SCHEMA = Schema()

    @classmethod
    def decode(cls, data: BytesIO) -> FetchAnswer:
        """Read what is left of the answer."""
        return read_answer(data.read())


class _FetchRequestV11(RequestStruct):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    RESPONSE_TYPE = _FetchResponse
    SCHEMA = Schema()

    def __init__(self, encoded: bytes) -> None:
        super().__init__()
        self._encoded = encoded

    def encode(self) -> bytes:
        """The body."""
        return self._encoded


class SessionFetch(Request[_FetchRequestV11]):  # type: ignore[misc]  # aiokafka is untyped
    """Ask for what lies in the partitions of one topic.

    Args:
        wanted: offsets of the partitions that are new to the session or have moved.
        forgotten: partitions that leave the session.
        session, epoch: NO_SESSION and 0 begin one; SESSIONLESS asks once.
        wait_ms: that the broker waits while there is nothing.
        partition_bytes: of one partition in the answer, at most, save that one record batch always comes.
    """

    API_KEY = _API_KEY

    def __init__(
        self,
        topic: str,
        wanted: Mapping[int, int],
        forgotten: Sequence[int] = (),
        *,
        session: int = NO_SESSION,
        epoch: int = SESSIONLESS,
        wait_ms: int,
        max_bytes: int,
        partition_bytes: int,
    ) -> None:
        name = _text(topic)
        parts = [_REQUEST.pack(_ANY_REPLICA, wait_ms, 1, max_bytes, _READ_UNCOMMITTED, session, epoch)]
        if wanted:
            parts += (_COUNT.pack(1), name, _COUNT.pack(len(wanted)))
            parts += [
                _WANTED.pack(partition, _NO_LEADER_EPOCH, offset, -1, partition_bytes)
                for partition, offset in wanted.items()
            ]
        else:
            parts.append(_COUNT.pack(0))
        if forgotten:
            parts += (_COUNT.pack(1), name, _COUNT.pack(len(forgotten)), *map(_COUNT.pack, forgotten))
        else:
            parts.append(_COUNT.pack(0))
        parts.append(_text(""))  # no rack
        self._encoded = b"".join(parts)

    def build(self, request_struct_class: type[_FetchRequestV11]) -> _FetchRequestV11:
        """The request in the one version that is known here."""
        return request_struct_class(self._encoded)


def read_answer(data: bytes) -> FetchAnswer:
    """Read the body of an answer."""
    _throttle, error, session = _ANSWER.unpack_from(data)
    at = _ANSWER.size
    (topics,) = _COUNT.unpack_from(data, at)
    at += _COUNT.size
    found: list[FetchedPartition] = []
    for _ in range(topics):
        (length,) = _SHORT.unpack_from(data, at)
        at += _SHORT.size + length
        (count,) = _COUNT.unpack_from(data, at)
        at += _COUNT.size
        for _ in range(count):
            at = _read_partition(data, at, found)
    return FetchAnswer(error, session, found)


def _read_partition(data: bytes, at: int, found: list[FetchedPartition]) -> int:
    partition, error, highwater, _stable, _log_start, aborted = _PARTITION.unpack_from(data, at)
    at += _PARTITION.size + max(0, aborted) * _ABORTED_BYTES
    _replica, size = _REPLICA_AND_SIZE.unpack_from(data, at)
    at += _REPLICA_AND_SIZE.size
    end: int = at + max(0, size)
    found.append(FetchedPartition(partition, error, highwater, data[at:end]))
    return end


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _SHORT.pack(len(encoded)) + encoded
