"""What a sender knows of the commands that lie undone."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from tessera.bus import BusBusy
from tessera.bus.admission import PEERS_LIMIT, UNDONE_LIMIT
from tessera.bus.kafka.backlog import Backlog, DoneOffset
from tessera.clock import FakeClock

TOPIC = "topic-1"


class Rows:
    """The partitions' rows, and who read them."""

    def __init__(self) -> None:
        self.done: dict[int, DoneOffset] = {}
        self.read: list[list[int]] = []
        self.topic_id = TOPIC
        self.delay: asyncio.Event | None = None
        self.failure: Exception | None = None

    async def __call__(self, partitions: Sequence[int]) -> Mapping[int, DoneOffset]:
        self.read.append(list(partitions))
        if self.delay is not None:
            await self.delay.wait()
        if self.failure is not None:
            raise self.failure
        return {one: self.done[one] for one in partitions if one in self.done}

    async def find_topic_id(self) -> str:
        return self.topic_id


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backlog(rows: Rows, clock: FakeClock) -> Backlog:
    return Backlog(rows, rows.find_topic_id, clock)


async def test_nothing_is_read_while_little_lies_undone(backlog: Backlog, rows: Rows) -> None:
    for offset in range(500):
        await backlog.admit(3, UNDONE_LIMIT)
        backlog.appended(3, offset)
    assert rows.read == []


async def test_the_bound_holds_to_the_command(backlog: Backlog, rows: Rows) -> None:
    rows.done[3] = (TOPIC, 99)
    backlog.appended(3, 99 + UNDONE_LIMIT - 1)
    await backlog.admit(3, UNDONE_LIMIT)
    backlog.appended(3, 99 + UNDONE_LIMIT)
    with pytest.raises(BusBusy):
        await backlog.admit(3, UNDONE_LIMIT)
    await backlog.admit(4, UNDONE_LIMIT)
    await backlog.admit(3, None)


async def test_peers_have_half_of_the_places(backlog: Backlog, rows: Rows) -> None:
    rows.done[3] = (TOPIC, -1)
    backlog.appended(3, PEERS_LIMIT - 1)
    with pytest.raises(BusBusy):
        await backlog.admit(3, PEERS_LIMIT)
    await backlog.admit(3, UNDONE_LIMIT)


async def test_under_pressure_the_rows_are_read_four_times_a_second_at_most(
    backlog: Backlog, rows: Rows, clock: FakeClock
) -> None:
    rows.done[3] = (TOPIC, -1)
    backlog.appended(3, 1_000)
    for _ in range(100):
        await backlog.admit(3, UNDONE_LIMIT)
        clock.shift(0.01)
    assert len(rows.read) == 4


async def test_places_come_back_when_the_writer_has_gone_on(backlog: Backlog, rows: Rows, clock: FakeClock) -> None:
    rows.done[3] = (TOPIC, -1)
    backlog.appended(3, 5_000)
    with pytest.raises(BusBusy):
        await backlog.admit(3, UNDONE_LIMIT)
    rows.done[3] = (TOPIC, 4_999)
    with pytest.raises(BusBusy):
        await backlog.admit(3, UNDONE_LIMIT)
    clock.shift(0.3)
    await backlog.admit(3, UNDONE_LIMIT)


async def test_many_senders_share_one_look(backlog: Backlog, rows: Rows) -> None:
    rows.done[3] = (TOPIC, -1)
    rows.delay = asyncio.Event()
    backlog.appended(3, 600)
    waiting = [asyncio.create_task(backlog.admit(3, UNDONE_LIMIT)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # who gives up does not take it from the others
    rows.delay.set()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert ended[1:] == [None] * 19
    assert len(rows.read) == 1


async def test_rows_of_another_topic_mean_nothing(backlog: Backlog, rows: Rows, clock: FakeClock) -> None:
    rows.done[3] = ("older", 10_000)
    backlog.appended(3, UNDONE_LIMIT)
    with pytest.raises(BusBusy):
        await backlog.admit(3, UNDONE_LIMIT)
    rows.done[3] = ("newer", 7)
    rows.topic_id = "newer"
    backlog.appended(3, 9)  # made anew: offsets begin again
    clock.shift(1)
    await backlog.admit(3, UNDONE_LIMIT)


@pytest.mark.parametrize("failure", [None, OSError("away")])
async def test_a_store_that_does_not_answer_refuses_nobody(
    backlog: Backlog, rows: Rows, failure: Exception | None
) -> None:
    rows.failure = failure
    backlog.appended(3, 100_000)
    await backlog.admit(3, UNDONE_LIMIT)
    await backlog.admit(3, UNDONE_LIMIT)
    assert len(rows.read) == 1
