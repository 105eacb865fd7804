"""What both buses promise: the one suite of the local and the Kafka form."""

import asyncio

import pytest
from bus_making import Buses, command, record, records

from tessera.bus import BusBusy, BusUnavailable, CommandReader, RecordReader
from tessera.bus.admission import PEERS_LIMIT, UNDONE_LIMIT
from tessera.commands import ReceivePdus, Unpark
from tessera.records import LogRecord


async def take_commands(reader: CommandReader, count: int) -> list[tuple[int, int]]:
    """(partition, number) of the next commands."""
    taken: list[tuple[int, int]] = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            for one in await reader.take(500):
                taken.append((one.partition, int.from_bytes(one.command.id, "big")))
    return taken


async def take_records(reader: RecordReader, count: int) -> list[LogRecord]:
    """The next records."""
    taken: list[LogRecord] = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            taken += await reader.take(500)
    return taken


async def nothing_comes(reader: CommandReader | RecordReader) -> bool:
    """Whether a take finds nothing for a while."""
    try:
        async with asyncio.timeout(0.3):
            await reader.take(10)
    except TimeoutError:
        return True
    return False


async def test_a_command_arrives_as_it_was_sent(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    await reader.assign(2, None)
    await buses.commands.send(command(7, 2))
    async with asyncio.timeout(20):
        (delivered,) = await reader.take(10)
    assert delivered.command == command(7, 2)
    assert (delivered.partition, delivered.offset) == (2, 0)
    assert await reader.end_offsets([2]) == {2: 0}
    await reader.close()


async def test_commands_of_a_partition_keep_their_order(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    for partition in range(3):
        await reader.assign(partition, None)
    for number in range(60):
        await buses.commands.send(command(number, number % 3))
    taken = await take_commands(reader, 60)
    for partition in range(3):
        assert [number for one, number in taken if one == partition] == list(range(partition, 60, 3))
    await reader.close()


async def test_what_is_ready_is_taken_without_waiting(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    await reader.assign(0, None)
    assert reader.take_ready(10) == []
    await buses.commands.send(command(0))
    assert await take_commands(reader, 1) == [(0, 0)]
    for number in range(1, 4):
        await buses.commands.send(command(number))
    taken: list[int] = []
    async with asyncio.timeout(20):
        while len(taken) < 3:
            taken += [one.offset for one in reader.take_ready(2)]
            await asyncio.sleep(0.01)
    assert taken == [1, 2, 3]
    assert reader.take_ready(10) == []
    await reader.close()
    with pytest.raises(BusUnavailable):
        reader.take_ready(10)


async def test_a_reader_begins_after_the_done_offset(buses: Buses) -> None:
    for number in range(10):
        await buses.commands.send(command(number))
    reader = await buses.commands.open_reader()
    await reader.assign(0, 6)
    assert await take_commands(reader, 3) == [(0, 7), (0, 8), (0, 9)]
    assert await reader.end_offsets([0, 1]) == {0: 9, 1: -1}
    await reader.close()


async def test_what_was_taken_and_not_done_goes_to_the_next_reader(buses: Buses) -> None:
    first = await buses.commands.open_reader()
    await first.assign(0, None)
    for number in range(5):
        await buses.commands.send(command(number))
    assert len(await take_commands(first, 5)) == 5
    first.done(0, 1)
    await first.revoke(0)
    second = await buses.commands.open_reader()
    await second.assign(0, 1)
    assert await take_commands(second, 3) == [(0, 2), (0, 3), (0, 4)]
    assert second.topic_id == first.topic_id
    await first.close()
    await second.close()


async def test_partitions_come_and_go_one_at_a_time(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    await reader.assign(0, None)
    await buses.commands.send(command(1, 0))
    assert await take_commands(reader, 1) == [(0, 1)]
    await buses.commands.send(command(2, 1))
    await reader.assign(1, None)
    assert await take_commands(reader, 1) == [(1, 2)]
    await reader.revoke(0)
    await buses.commands.send(command(3, 0))
    await buses.commands.send(command(4, 1))
    assert await take_commands(reader, 1) == [(1, 4)]
    await reader.assign(0, 0)
    assert await take_commands(reader, 1) == [(0, 3)]
    await reader.close()


async def test_what_was_fetched_and_not_taken_does_not_come_after_a_revocation(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    await reader.assign(0, None)
    await reader.assign(1, None)
    for number in range(20):
        await buses.commands.send(command(number, number % 2))
    async with asyncio.timeout(20):
        taken = {one.partition for one in await reader.take(2)}
    await reader.revoke(0)
    while len(taken) < 11:
        async with asyncio.timeout(20):
            delivered = await reader.take(100)
        assert {one.partition for one in delivered} == {1}
        if delivered[-1].offset == 9:
            break
    assert await nothing_comes(reader)
    await reader.close()


async def test_a_busy_partition_does_not_starve_the_others(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    await asyncio.gather(*(buses.commands.send(command(number, 0)) for number in range(300)))
    for number in range(300, 305):
        await buses.commands.send(command(number, 1))
    await reader.assign(0, None)
    await reader.assign(1, None)
    seen: set[int] = set()
    for _ in range(30):
        async with asyncio.timeout(20):
            seen |= {one.partition for one in await reader.take(10)}
        if len(seen) == 2:
            break
    assert seen == {0, 1}
    await reader.close()


async def test_a_waiting_take_ends_with_the_reader(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    await reader.assign(0, None)
    waiting = asyncio.ensure_future(reader.take(1))
    await asyncio.sleep(0)
    await reader.close()
    with pytest.raises(BusUnavailable):
        await waiting


async def test_peers_are_refused_before_people_and_what_frees_space_never(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    buses.done.rows[0] = (reader.topic_id, -1)
    pdus, unpark = ReceivePdus((1,)), Unpark()
    await send_many(buses, PEERS_LIMIT)
    with pytest.raises(BusBusy) as busy:
        await buses.commands.send(command(1, 0, pdus))
    assert busy.value.retry_after_ms > 0
    await send_many(buses, UNDONE_LIMIT - PEERS_LIMIT)
    with pytest.raises(BusBusy):
        await buses.commands.send(command(2))
    await buses.commands.send(command(3, 0, unpark))
    await buses.commands.send(command(4, 1))  # another partition has places of its own
    await reader.close()


async def test_places_are_free_again_when_commands_are_done(buses: Buses) -> None:
    reader = await buses.commands.open_reader()
    buses.done.rows[0] = (reader.topic_id, -1)
    await reader.assign(0, None)
    await send_many(buses, UNDONE_LIMIT)
    with pytest.raises(BusBusy):
        await buses.commands.send(command(1))
    await take_commands(reader, UNDONE_LIMIT)
    reader.done(0, UNDONE_LIMIT - 1)
    buses.done.rows[0] = (reader.topic_id, UNDONE_LIMIT - 1)
    async with asyncio.timeout(5):
        while True:
            try:
                await buses.commands.send(command(2))
                break
            except BusBusy:
                await asyncio.sleep(0.02)
    assert await take_commands(reader, 1) == [(0, 2)]
    await reader.close()


async def send_many(buses: Buses, count: int) -> None:
    """Fill partition 0."""
    for _ in range(0, count, 500):
        await asyncio.gather(*(buses.commands.send(command(9)) for _ in range(min(500, count))))
        count -= 500


async def test_records_arrive_as_they_were_announced(buses: Buses) -> None:
    reader = await buses.records.open_reader()
    await reader.assign(0, 0)
    await reader.assign(3, 0)
    await buses.records.announce(0, records(1, 3))
    await buses.records.announce(3, [record(1, 3)])
    taken = await take_records(reader, 4)
    assert [one for one in taken if one.partition == 0] == records(1, 3)
    assert [one for one in taken if one.partition == 3] == [record(1, 3)]
    await reader.close()


async def test_a_consumer_begins_after_its_position(buses: Buses) -> None:
    await buses.records.announce(0, records(1, 10))
    reader = await buses.records.open_reader()
    await reader.assign(0, 6)
    assert await take_records(reader, 4) == records(7, 10)
    await buses.records.announce(0, records(11, 12))
    assert await take_records(reader, 2) == records(11, 12)
    await reader.close()


async def test_a_consumer_that_is_up_to_date_gets_only_what_is_new(buses: Buses) -> None:
    await buses.records.announce(0, records(1, 10))
    reader = await buses.records.open_reader()
    await reader.assign(0, 10)
    assert await nothing_comes(reader)
    await buses.records.announce(0, [record(11)])
    assert await take_records(reader, 1) == [record(11)]
    await reader.close()


async def test_a_consumer_that_begins_in_an_empty_topic_gets_what_comes(buses: Buses) -> None:
    reader = await buses.records.open_reader()
    await reader.assign(0, 41)
    await buses.records.announce(0, records(42, 44))
    assert await take_records(reader, 3) == records(42, 44)
    await reader.close()


async def test_a_hole_is_left_to_the_consumer(buses: Buses) -> None:
    reader = await buses.records.open_reader()
    await reader.assign(0, 0)
    await buses.records.announce(0, records(1, 2))
    await buses.records.announce(0, records(5, 6))
    assert [one.position for one in await take_records(reader, 4)] == [1, 2, 5, 6]
    await reader.close()


async def test_a_revoked_partition_is_silent(buses: Buses) -> None:
    reader = await buses.records.open_reader()
    await reader.assign(0, 0)
    await reader.assign(1, 0)
    await reader.revoke(0)
    await buses.records.announce(0, [record(1)])
    await buses.records.announce(1, [record(1, 1)])
    assert await take_records(reader, 1) == [record(1, 1)]
    await reader.close()


async def test_several_consumers_each_get_everything(buses: Buses) -> None:
    readers = [await buses.records.open_reader() for _ in range(2)]
    for reader in readers:
        await reader.assign(0, 0)
    await buses.records.announce(0, records(1, 5))
    for reader in readers:
        assert await take_records(reader, 5) == records(1, 5)
        await reader.close()


async def test_announcing_nothing_is_nothing(buses: Buses) -> None:
    await buses.records.announce(0, [])
    reader = await buses.records.open_reader()
    await reader.assign(0, 0)
    assert await nothing_comes(reader)
    await reader.close()
