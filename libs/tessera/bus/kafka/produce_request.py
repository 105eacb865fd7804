"""The Produce request, version 7 (Kafka 2.1 and newer), written and read by hand: acks=all, no transactions.

Spec: Kafka protocol, Produce API; message format 2.
"""

from collections.abc import Iterable, Mapping
from io import BytesIO
from struct import Struct
from typing import NamedTuple

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Schema
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from tessera.bus.kafka.envelope import Headers

_API_KEY = 0
_API_VERSION = 7
_ACKS_ALL = -1
_NONE = -1
_MAGIC = 2
_NO_BOUND = 1 << 30  # of a batch: the caller has one

_REQUEST = Struct(">hhi")  # transactional id, acks, time-out
_COUNT = Struct(">i")
_SHORT = Struct(">h")
_BATCH = Struct(">ii")  # partition, bytes
_PARTITION = Struct(">ihqqq")  # partition, error, base offset, timestamp, log start

Outgoing = tuple[bytes, Headers]
"""A record's bytes, and what travels beside them."""
Place = tuple[str, int]
"""A topic and a partition."""


class Produced(NamedTuple):
    """What a broker says of one batch: an error, or 0 and the offset of its first record."""

    error: int
    base_offset: int


class _ProduceResponse(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    SCHEMA = Schema()

    @classmethod
    def decode(cls, data: BytesIO) -> dict[Place, Produced]:
        """Read what is left of the answer."""
        return read_produced(data.read())


class _ProduceRequestV7(RequestStruct):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    RESPONSE_TYPE = _ProduceResponse
    SCHEMA = Schema()

    def __init__(self, encoded: bytes) -> None:
        super().__init__()
        self._encoded = encoded

    def encode(self) -> bytes:
        """The body."""
        return self._encoded


class Produce(Request[_ProduceRequestV7]):  # type: ignore[misc]  # aiokafka is untyped
    """Append one batch to each of some partitions.

    Args:
        timeout_ms: that the broker waits for the replicas.
    """

    API_KEY = _API_KEY

    def __init__(self, batches: Mapping[Place, bytes], timeout_ms: int) -> None:
        by_topic: dict[str, list[tuple[int, bytes]]] = {}
        for (topic, partition), batch in batches.items():
            by_topic.setdefault(topic, []).append((partition, batch))
        parts = [_REQUEST.pack(_NONE, _ACKS_ALL, timeout_ms), _COUNT.pack(len(by_topic))]
        for topic, own in by_topic.items():
            name = topic.encode()
            parts += (_SHORT.pack(len(name)), name, _COUNT.pack(len(own)))
            for partition, batch in own:
                parts += (_BATCH.pack(partition, len(batch)), batch)
        self._encoded = b"".join(parts)

    def build(self, request_struct_class: type[_ProduceRequestV7]) -> _ProduceRequestV7:
        """The request in the one version that is known here."""
        return request_struct_class(self._encoded)


def make_batch(records: Iterable[Outgoing], now_ms: int) -> bytes:
    """Records (one at least) as they lie in a topic; the broker numbers them."""
    builder = DefaultRecordBatchBuilder(_MAGIC, 0, 0, _NONE, _NONE, _NONE, _NO_BOUND)
    for index, (value, headers) in enumerate(records):
        builder.append(index, now_ms, None, value, headers)
    return bytes(builder.build())


def read_produced(data: bytes) -> dict[Place, Produced]:
    """Read the body of an answer."""
    found: dict[Place, Produced] = {}
    (topics,) = _COUNT.unpack_from(data)
    at = _COUNT.size
    for _ in range(topics):
        (length,) = _SHORT.unpack_from(data, at)
        at += _SHORT.size
        topic = data[at : at + length].decode()
        at += length
        (count,) = _COUNT.unpack_from(data, at)
        at += _COUNT.size
        for _ in range(count):
            partition, error, base_offset, _timestamp, _log_start = _PARTITION.unpack_from(data, at)
            at += _PARTITION.size
            found[topic, partition] = Produced(error, base_offset)
    return found
