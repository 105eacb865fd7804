"""Topics that were emptied, made anew, filled by others, or are not as configured."""

import asyncio

import pytest
from bus_making import PARTITIONS, DoneOffsets, command, kafka_buses, record, records
from prometheus_client import REGISTRY
from test_buses import nothing_comes, take_commands, take_records

from tessera.bus import CommandReader, TopicReplaced
from tessera.bus.kafka import TopicsDisagree
from tessera.bus.kafka.topics import COMMANDS, RECORDS
from tessera.commands import Append, NewEvent, encode_command
from tessera.config import KafkaSettings
from tessera.records import encode_record
from tests.fixtures.kafka_broker import Broker
from tests.fixtures.kafka_topics import Administration, make_topics, topic_prefix


@pytest.fixture
async def settings(kafka: Broker) -> KafkaSettings:
    """Of topics that are there."""
    made = kafka.settings(topic_prefix())
    await make_topics(made, PARTITIONS)
    return made


async def replaced(reader: CommandReader) -> None:
    """Until the reader says that its topic was replaced."""
    async with asyncio.timeout(30):
        with pytest.raises(TopicReplaced):
            await reader.take(10)


def metric(name: str, settings: KafkaSettings, topic: str) -> float:
    """A figure of a topic."""
    return REGISTRY.get_sample_value(name, {"topic": f"{settings.topic_prefix}{topic}"}) or 0.0


async def test_a_record_carries_its_version_and_its_trace(settings: KafkaSettings) -> None:
    async with kafka_buses(settings) as buses:
        await buses.commands.send(command(1))
    lying = await Administration(settings).first_record(COMMANDS, 0)
    assert dict(lying.headers) == {"v": b"1", "traceparent": command(1).traceparent.encode()}


async def test_a_large_record_passes(settings: KafkaSettings) -> None:
    large = "x" * (3 << 20)
    async with kafka_buses(settings) as buses:
        reader = await buses.commands.open_reader()
        await reader.assign(0, None)
        sent = command(1, body=Append(NewEvent("m.room.message", None, {"body": large})))
        await buses.commands.send(sent)
        async with asyncio.timeout(20):
            (delivered,) = await reader.take(1)
        assert delivered.command == sent


@pytest.mark.usefixtures("apache_kafka")
async def test_an_emptied_partition_is_read_from_where_it_begins(settings: KafkaSettings) -> None:
    async with kafka_buses(settings) as buses:
        for number in range(6):
            await buses.commands.send(command(number))
        await Administration(settings).empty(COMMANDS, 0, 4)
        for done_offset in (None, 1):
            reader = await buses.commands.open_reader()
            await reader.assign(0, done_offset)
            assert await take_commands(reader, 2) == [(0, 4), (0, 5)]
            await reader.close()


@pytest.mark.usefixtures("apache_kafka")
async def test_a_reader_goes_on_when_its_partition_is_emptied(settings: KafkaSettings) -> None:
    async with kafka_buses(settings) as buses:
        reader = await buses.commands.open_reader()
        await reader.assign(0, None)
        await buses.commands.send(command(0))
        assert await take_commands(reader, 1) == [(0, 0)]
        await Administration(settings).empty(COMMANDS, 0, 1)
        await buses.commands.send(command(1))
        assert await take_commands(reader, 1) == [(0, 1)]


async def test_a_topic_made_anew_has_another_id_and_its_readers_begin_anew(settings: KafkaSettings) -> None:
    administration = Administration(settings)
    async with kafka_buses(settings) as buses:
        reader = await buses.commands.open_reader()
        await reader.assign(0, None)
        for number in range(3):
            await buses.commands.send(command(number))
        await take_commands(reader, 3)
        old = reader.topic_id
        await administration.remove(COMMANDS)
        await make_topics(settings, PARTITIONS)
        await replaced(reader)
        assert reader.topic_id != old
        assert await nothing_comes(reader), "no partition is left"
        await buses.commands.send(command(7))
        await reader.assign(0, None)
        assert await take_commands(reader, 1) == [(0, 7)]


@pytest.mark.usefixtures("apache_kafka")
async def test_an_offset_beyond_the_end_means_that_the_end_was_lost(settings: KafkaSettings) -> None:
    async with kafka_buses(settings) as buses:
        await buses.commands.send(command(1))
        reader = await buses.commands.open_reader()
        await reader.assign(0, 41)
        await replaced(reader)
        assert await reader.end_offsets([0]) == {0: 0}


async def test_a_consumer_of_records_goes_on_in_a_topic_made_anew(settings: KafkaSettings) -> None:
    administration = Administration(settings)
    async with kafka_buses(settings) as buses:
        reader = await buses.records.open_reader()
        await reader.assign(0, 0)
        await buses.records.announce(0, records(1, 3))
        await take_records(reader, 3)
        await administration.remove(RECORDS)
        await make_topics(settings, PARTITIONS)
        await buses.records.announce(0, records(3, 5))
        assert [one.position for one in await take_records(reader, 2)] == [4, 5]


async def test_what_is_announced_again_is_hidden(settings: KafkaSettings) -> None:
    async with kafka_buses(settings) as buses:
        reader = await buses.records.open_reader()
        await reader.assign(0, 0)
        await buses.records.announce(0, records(1, 3))
        await buses.records.announce(0, records(2, 4))
        await buses.records.announce(0, records(1, 2))  # a writer that was paused and has lost the partition
        await buses.records.announce(0, records(5, 5))
        assert [one.position for one in await take_records(reader, 5)] == [1, 2, 3, 4, 5]


async def test_a_consumer_that_joins_finds_its_place_among_repetitions(settings: KafkaSettings) -> None:
    async with kafka_buses(settings) as buses:
        for first in (1, 4, 7):
            await buses.records.announce(0, records(first, first + 5))
        for after in (0, 2, 8):
            reader = await buses.records.open_reader()
            await reader.assign(0, after)
            found = [one.position for one in await take_records(reader, 12 - after)]
            assert found == list(range(after + 1, 13))


async def test_a_record_of_a_newer_version_stops_its_partition_alone(settings: KafkaSettings) -> None:
    administration = Administration(settings)
    stopped = "tessera_bus_stopped_partitions"
    async with kafka_buses(settings) as buses:
        reader = await buses.commands.open_reader()
        await reader.assign(0, None)
        await reader.assign(1, None)
        await buses.commands.send(command(1))
        await administration.produce(COMMANDS, 0, encode_command(command(2)), ("v", b"2"))
        await buses.commands.send(command(3))
        await buses.commands.send(command(4, 1))
        assert sorted(await take_commands(reader, 2)) == [(0, 1), (1, 4)]
        assert await nothing_comes(reader)
        assert metric(stopped, settings, COMMANDS) == 1
        await reader.revoke(0)
        assert metric(stopped, settings, COMMANDS) == 0


async def test_a_kind_that_is_not_known_stops_too(settings: KafkaSettings) -> None:
    newer = encode_record(record(2)).replace(b'"!room:chat.example",1,1,', b'"!room:chat.example",1,99,')
    async with kafka_buses(settings) as buses:
        reader = await buses.records.open_reader()
        await reader.assign(0, 0)
        await buses.records.announce(0, records(1, 1))
        await Administration(settings).produce(RECORDS, 0, newer, ("v", b"1"))
        await buses.records.announce(0, records(3, 3))
        assert await take_records(reader, 1) == [record(1)]
        assert await nothing_comes(reader)


async def test_what_none_of_us_wrote_is_left_out_and_counted(settings: KafkaSettings) -> None:
    administration = Administration(settings)
    async with kafka_buses(settings) as buses:
        reader = await buses.commands.open_reader()
        await reader.assign(0, None)
        await administration.produce(COMMANDS, 0, b"hello?")
        await administration.produce(COMMANDS, 0, b"{", ("v", b"1"))
        await buses.commands.send(command(1))
        assert await take_commands(reader, 1) == [(0, 1)]
        assert metric("tessera_bus_malformed_records_total", settings, COMMANDS) == 2


@pytest.mark.parametrize(
    ("partitions", "configs", "said"),
    [
        (PARTITIONS + 1, {}, f"has {PARTITIONS + 1} partitions, the database {PARTITIONS}"),
        (PARTITIONS, {"cleanup.policy": "compact"}, "cleanup.policy=compact, not delete"),
        (PARTITIONS, {"unclean.leader.election.enable": "true"}, "unclean.leader.election.enable=true, not false"),
        (PARTITIONS, {"retention.ms": "60000"}, "retention.ms=60000, not"),
        (PARTITIONS, {"max.message.bytes": "1000"}, "max.message.bytes=1000, not"),
    ],
)
async def test_topics_that_are_not_as_configured_are_refused(
    kafka: Broker, partitions: int, configs: dict[str, str], said: str
) -> None:
    settings = kafka.settings(topic_prefix())
    await Administration(settings).make(COMMANDS, partitions, **configs)
    await make_topics(settings, PARTITIONS)  # the other one
    with pytest.raises(TopicsDisagree, match=said):
        async with kafka_buses(settings, DoneOffsets()):
            pass


async def test_more_than_is_asked_is_fine(kafka: Broker) -> None:
    settings = kafka.settings(topic_prefix())
    longer = {"retention.ms": "-1", "max.message.bytes": str(64 << 20), "cleanup.policy": "delete"}
    await Administration(settings).make(COMMANDS, PARTITIONS, **longer)
    await make_topics(settings, PARTITIONS)
    async with kafka_buses(settings) as buses:
        await buses.ping()


async def test_missing_topics_are_named(kafka: Broker) -> None:
    settings = kafka.settings(topic_prefix())
    with pytest.raises(TopicsDisagree, match=r"no topic .*room.commands and no topic .*room.log; run `tessera topics`"):
        async with kafka_buses(settings):
            pass
