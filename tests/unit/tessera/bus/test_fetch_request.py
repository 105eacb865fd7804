"""Fetch requests and answers as they lie on the wire."""

from io import BytesIO

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchRequest_v11, FetchResponse_v11
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from tessera.bus.kafka.fetch_request import FetchedPartition, SessionFetch, read_answer


def _batch(first: int, *values: bytes) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    for offset, value in enumerate(values):
        builder.append(offset, 1_000 + offset, None, value, [("v", b"1")])
    built = bytes(builder.build())
    return first.to_bytes(8, "big") + built[8:]


def test_what_is_written_is_a_fetch_request() -> None:
    fetch = SessionFetch(
        "room.log", {3: 70, 5: 90}, [8], session=12, epoch=4, wait_ms=500, max_bytes=1000, partition_bytes=100
    )
    read = FetchRequest_v11.decode(BytesIO(fetch.prepare({1: (4, 17)}).encode()))
    assert read.to_object() == {
        "replica_id": -1,
        "max_wait_time": 500,
        "min_bytes": 1,
        "max_bytes": 1000,
        "isolation_level": 0,
        "session_id": 12,
        "session_epoch": 4,
        "topics": [
            {
                "topic": "room.log",
                "partitions": [
                    {"partition": 3, "current_leader_epoch": -1, "fetch_offset": 70}
                    | {"log_start_offset": -1, "max_bytes": 100},
                    {"partition": 5, "current_leader_epoch": -1, "fetch_offset": 90}
                    | {"log_start_offset": -1, "max_bytes": 100},
                ],
            }
        ],
        "forgotten_topics_data": [{"topic": "room.log", "partitions": [8]}],
        "rack_id": "",
    }


def test_an_answer_is_read_past_aborted_transactions_and_empty_partitions() -> None:
    answer = FetchResponse_v11(
        0,
        0,
        77,
        [
            ("room.log", [(3, 0, 72, 72, 0, [(1, 2), (3, 4)], -1, b"abc"), (4, 1, -1, -1, -1, None, -1, None)]),
            ("other", [(9, 0, 5, 5, 0, [], -1, b"")]),
        ],
    )
    read = read_answer(answer.encode())
    assert (read.error, read.session) == (0, 77)
    assert read.partitions == [
        FetchedPartition(3, 0, 72, b"abc"),
        FetchedPartition(4, 1, -1, b""),
        FetchedPartition(9, 0, 5, b""),
    ]


def test_records_begin_at_the_offset_although_the_batch_begins_before_and_one_that_is_cut_off_is_left() -> None:
    data = _batch(70, b"a", b"b", b"c") + _batch(73, b"d")[:-1]
    records, end = FetchedPartition(3, 0, 80, data).records(71)
    assert [(one.partition, one.offset, one.timestamp, one.value) for one in records] == [
        (3, 71, 1_001, b"b"),
        (3, 72, 1_002, b"c"),
    ]
    assert records[0].headers == [("v", b"1")]
    assert end == 73


def test_nothing_whole_moves_nothing() -> None:
    assert FetchedPartition(3, 0, 80, _batch(70, b"a")[:-1]).records(70) == ([], 70)


def test_a_wrong_check_sum_is_found() -> None:
    data = bytearray(_batch(70, b"abcdef"))
    data[-3] ^= 1
    with pytest.raises(CorruptRecordException):
        FetchedPartition(3, 0, 80, bytes(data)).records(70)
