"""Produce requests and answers as they lie on the wire, and what goes into one of them."""

import asyncio
from collections import deque
from io import BytesIO

from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7

from tessera.bus.kafka.fetch_request import FetchedPartition
from tessera.bus.kafka.produce_request import Produce, Produced, make_batch, read_produced
from tessera.bus.kafka.producing import _Entry, _next_batches, _slices

HEADERS = [("v", b"1")]


def _entry(size: int, partition: int = 0) -> _Entry:
    return _Entry(("room.log", partition), [(b"x" * size, HEADERS)], size, asyncio.Future())


def test_what_is_written_is_a_produce_request_with_one_batch_for_each_partition() -> None:
    produce = Produce({("room.log", 3): b"abc", ("room.commands", 3): b"d", ("room.log", 4): b"ef"}, 5000)
    read = ProduceRequest_v7.decode(BytesIO(produce.prepare({0: (3, 12)}).encode()))
    assert read.to_object() == {
        "transactional_id": None,
        "required_acks": -1,
        "timeout": 5000,
        "topics": [
            {
                "topic": "room.log",
                "partitions": [{"partition": 3, "messages": b"abc"}, {"partition": 4, "messages": b"ef"}],
            },
            {"topic": "room.commands", "partitions": [{"partition": 3, "messages": b"d"}]},
        ],
    }


def test_an_answer_names_each_batch() -> None:
    answer = ProduceResponse_v7(
        [("room.log", [(3, 0, 70, -1, 0), (4, 6, -1, -1, -1)]), ("room.commands", [(3, 0, 9, -1, 0)])], 0
    )
    assert read_produced(answer.encode()) == {
        ("room.log", 3): Produced(0, 70),
        ("room.log", 4): Produced(6, -1),
        ("room.commands", 3): Produced(0, 9),
    }


def test_a_batch_is_read_as_it_was_made() -> None:
    batch = make_batch([(b"a", HEADERS), (b"", []), (b"c", HEADERS)], 1_234)
    records, end = FetchedPartition(0, 0, 3, batch).records(0)
    assert [(one.offset, one.timestamp, one.value, list(one.headers)) for one in records] == [
        (0, 1_234, b"a", HEADERS),
        (1, 1_234, b"", []),
        (2, 1_234, b"c", HEADERS),
    ]
    assert end == 3


def test_records_are_cut_into_slices_that_fit_and_a_large_one_goes_alone() -> None:
    sizes = [100 << 10, 100 << 10, 100 << 10, 900 << 10, 1]
    slices = list(_slices([(bytes(size), HEADERS) for size in sizes]))
    assert [[len(value) for value, _headers in one] for one in slices] == [sizes[:2], sizes[2:3], sizes[3:4], sizes[4:]]


async def test_a_request_takes_what_fits_in_order_and_leaves_out_what_nobody_waits_for() -> None:
    given_up, first, second, third = _entry(10), _entry(200 << 10), _entry(10, partition=1), _entry(100 << 10)
    given_up.taken.cancel()
    waiting = deque([given_up, first, second, third])
    assert _next_batches(waiting) == {("room.log", 0): [first], ("room.log", 1): [second]}
    assert list(waiting) == [third]
    assert _next_batches(waiting) == {("room.log", 0): [third]}
    assert not waiting
