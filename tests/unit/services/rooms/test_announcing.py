"""The pump: a partition's records in order, partitions side by side."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from matrixcore.identifiers import RoomId
from services.rooms.announcing import PAUSE_SECONDS, Pump
from tessera.bus import BusUnavailable, RecordBus
from tessera.clock import FakeClock
from tessera.records import LogRecord, RecordKind
from tessera.storage.database import Database


class Bus:
    """Takes records of all partitions but those that are away."""

    def __init__(self) -> None:
        self.taken: dict[int, list[int]] = {}
        self.away: set[int] = set()
        self.stuck: dict[int, asyncio.Event] = {}

    async def announce(self, partition: int, records: Sequence[LogRecord]) -> None:
        if partition in self.stuck:
            await self.stuck[partition].wait()
        if partition in self.away:
            raise BusUnavailable("away")
        self.taken.setdefault(partition, []).extend(record.position for record in records)


def records(partition: int, first: int, last: int) -> list[LogRecord]:
    room_id = RoomId("!room:here.org")
    return [
        LogRecord(1, partition, position, room_id, position - 1, RecordKind.PURGED, None)
        for position in range(first, last + 1)
    ]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
async def pump(bus: Bus, clock: FakeClock) -> AsyncIterator[Pump]:
    """A running pump of three partitions; nothing has to be read from PostgreSQL."""
    made = Pump(cast("Database", None), cast("RecordBus", bus), clock)
    for partition in range(3):
        made.add_partition(partition, 0, 0)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_records_go_out_in_order(pump: Pump, bus: Bus, clock: FakeClock) -> None:
    for first in (1, 3, 5):
        pump.offer(0, records(0, first, first + 1))
        await clock.advance(PAUSE_SECONDS)
    assert bus.taken == {0: [1, 2, 3, 4, 5, 6]}
    assert pump.announced(0) == 6
    assert pump.is_settled()


async def test_a_partition_that_fails_is_tried_from_the_same_place(pump: Pump, bus: Bus, clock: FakeClock) -> None:
    bus.away = {1}
    pump.offer(1, records(1, 1, 2))
    await clock.advance(2)
    pump.offer(1, records(1, 3, 3))
    assert pump.announced(1) == 0
    assert not pump.is_settled()
    bus.away = set()
    await clock.advance(1)
    assert bus.taken == {1: [1, 2, 3]}


async def test_a_partition_that_waits_for_its_broker_keeps_no_other_waiting(
    pump: Pump, bus: Bus, clock: FakeClock
) -> None:
    bus.stuck[0] = asyncio.Event()
    pump.offer(0, records(0, 1, 1))
    await clock.advance(PAUSE_SECONDS)
    pump.offer(2, records(2, 1, 2))
    pump.offer(0, records(0, 2, 2))
    await clock.advance(PAUSE_SECONDS)
    assert bus.taken == {2: [1, 2]}
    bus.stuck[0].set()
    await clock.advance(PAUSE_SECONDS)
    assert bus.taken == {2: [1, 2], 0: [1, 2]}


async def test_a_dropped_partition_is_forgotten(pump: Pump, bus: Bus, clock: FakeClock) -> None:
    bus.stuck[0] = asyncio.Event()
    pump.offer(0, records(0, 1, 1))
    await clock.advance(PAUSE_SECONDS)
    pump.drop_partition(0)
    bus.stuck[0].set()
    await clock.advance(PAUSE_SECONDS)
    assert pump.is_settled()
    with pytest.raises(KeyError):
        pump.announced(0)
