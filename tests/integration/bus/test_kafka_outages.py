"""A broker that is away, ended, started again, or answers nothing."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from bus_making import PARTITIONS, command, kafka_buses, records
from test_buses import take_commands, take_records

from tessera.bus import BusBusy, BusUnavailable
from tessera.bus.kafka import KafkaBuses
from tessera.config import KafkaSettings
from tests.fixtures.kafka_broker import ApacheKafka
from tests.fixtures.kafka_topics import make_topics, topic_prefix

PATIENCE = {"request_timeout": 2_000}


@asynccontextmanager
async def own_buses(broker: ApacheKafka, **changes: object) -> AsyncIterator[KafkaBuses]:
    """Buses on a broker that the test may end."""
    settings = broker.settings(topic_prefix(), **PATIENCE, **changes)
    await make_topics(settings, PARTITIONS)
    async with kafka_buses(settings) as buses:
        yield buses


async def test_without_a_broker_sends_are_refused_and_readers_wait() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{nobody.getsockname()[1]}"
        settings = KafkaSettings(bootstrap_servers=(server,), request_timeout=1_000, fetch_max_wait=100)
        async with kafka_buses(settings) as buses:
            with pytest.raises(BusUnavailable):
                await buses.ping()
            started = asyncio.get_running_loop().time()
            sends = [buses.commands.send(command(number)) for number in range(50)]
            refused = await asyncio.gather(*sends, return_exceptions=True)
            assert {type(error) for error in refused} == {BusUnavailable}
            assert asyncio.get_running_loop().time() - started < 5
            with pytest.raises(BusUnavailable):
                await buses.records.announce(0, records(1, 2))
            with pytest.raises(BusUnavailable):
                await buses.records.open_reader()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await buses.commands.open_reader()


async def test_buses_find_a_broker_that_comes_later(own_broker: ApacheKafka) -> None:
    settings = own_broker.settings(topic_prefix(), **PATIENCE)
    await make_topics(settings, PARTITIONS)
    await asyncio.to_thread(own_broker.kill)
    async with kafka_buses(settings) as buses:
        opening = asyncio.create_task(buses.commands.open_reader())
        with pytest.raises(BusUnavailable):
            await buses.commands.send(command(1))
        await asyncio.to_thread(own_broker.start)
        async with asyncio.timeout(30):
            reader = await opening
            await reader.assign(0, None)
            while True:
                try:
                    await buses.commands.send(command(2))
                    break
                except BusUnavailable:
                    await asyncio.sleep(0.1)
        assert await take_commands(reader, 1) == [(0, 2)]


async def test_a_broker_started_again_loses_nothing_acknowledged(own_broker: ApacheKafka) -> None:
    async with own_buses(own_broker) as buses:
        reader = await buses.commands.open_reader()
        consumer = await buses.records.open_reader()
        for partition in range(2):
            await reader.assign(partition, None)
        await consumer.assign(0, 0)
        for number in range(10):
            await buses.commands.send(command(number, number % 2))
        await buses.records.announce(0, records(1, 5))
        assert len(await take_commands(reader, 5)) >= 5
        await asyncio.to_thread(own_broker.kill)
        with pytest.raises(BusUnavailable):
            await buses.commands.send(command(99))
        await asyncio.to_thread(own_broker.start)
        acknowledged: list[int] = []
        async with asyncio.timeout(40):
            for number in range(20, 26):
                while number not in acknowledged:
                    try:
                        await buses.commands.send(command(number, number % 2))
                        acknowledged.append(number)
                    except BusUnavailable:
                        await asyncio.sleep(0.1)
            while True:
                try:
                    await buses.records.announce(0, records(6, 8))
                    break
                except BusUnavailable:
                    await asyncio.sleep(0.1)
        second = await buses.commands.open_reader()
        for partition in range(2):
            await second.assign(partition, None)
        expected = {*range(10), *acknowledged}
        for everything in (second, reader):
            seen: set[int] = set() if everything is second else set(range(10))
            async with asyncio.timeout(40):
                while not expected <= seen:
                    seen |= {number for _partition, number in await take_commands(everything, 1)}
        assert [one.position for one in await take_records(consumer, 8)] == list(range(1, 9))


async def test_a_broker_that_answers_nothing_makes_sends_fail_in_time(own_broker: ApacheKafka) -> None:
    async with own_buses(own_broker, max_in_flight=20) as buses:
        reader = await buses.commands.open_reader()
        await reader.assign(0, None)
        await buses.commands.send(command(1))
        await take_commands(reader, 1)
        own_broker.freeze()
        started = asyncio.get_running_loop().time()
        sends = [buses.commands.send(command(number)) for number in range(2, 52)]
        ended = await asyncio.gather(*sends, return_exceptions=True)
        assert asyncio.get_running_loop().time() - started < 2 * PATIENCE["request_timeout"] / 1000
        assert [type(error) for error in ended].count(BusBusy) == 30, "only so many may be under way"
        assert [type(error) for error in ended].count(BusUnavailable) == 20
        own_broker.thaw()
        async with asyncio.timeout(40):
            while True:
                try:
                    await buses.commands.send(command(100))
                    break
                except BusUnavailable:
                    await asyncio.sleep(0.1)
            seen: list[int] = []
            while 100 not in seen:  # those whose end nobody knew may be there as well
                seen += [number for _partition, number in await take_commands(reader, 1)]
        assert set(seen) <= {*range(2, 52), 100}
