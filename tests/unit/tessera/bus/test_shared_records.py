"""One reader of room.log for several consumers."""

import asyncio
from collections.abc import Sequence

import pytest

from matrixcore.identifiers import RoomId
from tessera.bus import BusUnavailable, LocalRecordBus, RecordReader
from tessera.bus import shared_records as module
from tessera.bus.shared_records import SharedReader, SharedRecords
from tessera.records import LogRecord, RecordKind


class CountingBus(LocalRecordBus):
    """Counts the readers that were opened."""

    opened = 0

    async def open_reader(self):  # type: ignore[no-untyped-def]
        self.opened += 1
        return await super().open_reader()


def records(first: int, last: int, partition: int = 0) -> list[LogRecord]:
    return [
        LogRecord(1, partition, position, RoomId("!room:chat.example"), 0, RecordKind.GAP, None)
        for position in range(first, last + 1)
    ]


async def taken(reader: RecordReader, count: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found += [record.position for record in await reader.take(100)]
    return found


async def opened(shared: SharedRecords, *places: int | None) -> Sequence[SharedReader]:
    """A reader for each, at that position of partition 0 unless it is None."""
    readers = [await shared.open_reader() for _ in places]
    for reader, place in zip(readers, places, strict=True):
        if place is not None:
            await reader.assign(0, place)
    return readers


async def test_each_gets_every_record_once_from_one_reader_below() -> None:
    bus = CountingBus()
    shared = SharedRecords(bus)
    one, other = await opened(shared, 0, 0)
    waiting = [asyncio.create_task(taken(reader, 3)) for reader in (one, other)]
    await asyncio.sleep(0)
    await shared.announce(0, records(1, 3))
    assert await asyncio.gather(*waiting) == [[1, 2, 3], [1, 2, 3]]
    assert bus.opened == 1


async def test_who_comes_later_from_before_disturbs_nobody() -> None:
    bus = LocalRecordBus()
    shared = SharedRecords(bus)
    one, other = await opened(shared, 0, None)
    await bus.announce(0, records(1, 3))
    assert await taken(one, 3) == [1, 2, 3]
    await other.assign(0, 1)
    assert await taken(other, 2) == [2, 3]
    await bus.announce(0, records(4, 4))
    assert await taken(one, 1) == [4]
    assert await taken(other, 1) == [4]


async def test_who_begins_above_what_is_read_gets_only_what_is_above() -> None:
    bus = LocalRecordBus()
    one, other = await opened(SharedRecords(bus), 0, 2)
    await bus.announce(0, records(1, 3))
    assert await taken(other, 1) == [3]
    assert await taken(one, 3) == [1, 2, 3]


async def test_a_partition_is_read_until_the_last_one_gives_it_up() -> None:
    bus = LocalRecordBus()
    one, other = await opened(SharedRecords(bus), 0, 0)
    await bus.announce(0, records(1, 1))
    assert await taken(one, 1) == [1]
    await other.revoke(0)
    await bus.announce(0, records(2, 2))
    assert await taken(one, 1) == [2]
    await one.revoke(0)
    await one.assign(0, 0)
    assert await taken(one, 2) == [1, 2]


async def test_one_that_is_slow_keeps_the_newest_of_each_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_LIMIT", 10)
    bus = LocalRecordBus()
    quick, slow = await opened(SharedRecords(bus), 0, 0)
    for reader in (quick, slow):
        await reader.assign(1, 0)
    await bus.announce(0, records(1, 6))
    await bus.announce(1, records(1, 6, partition=1))
    assert len(await taken(quick, 12)) == 12
    assert [(record.partition, record.position) for record in await slow.take(100)] == [(0, 6), (1, 6)]


async def test_when_the_one_that_takes_is_ended_another_takes() -> None:
    bus = LocalRecordBus()
    one, other = await opened(SharedRecords(bus), 0, 0)
    taking = asyncio.create_task(one.take(10))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(taken(other, 2))
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    await one.close()
    await bus.announce(0, records(1, 2))
    assert await waiting == [1, 2]


async def test_the_reader_below_is_closed_with_the_last_one_and_opened_again() -> None:
    bus = CountingBus()
    shared = SharedRecords(bus)
    one, other = await opened(shared, 0, 0)
    await one.close()
    await other.close()
    with pytest.raises(BusUnavailable):
        await other.take(1)
    (again,) = await opened(shared, 0)
    await bus.announce(0, records(1, 1))
    assert await taken(again, 1) == [1]
    assert bus.opened == 2
