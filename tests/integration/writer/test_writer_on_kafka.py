"""Room writers whose commands and records travel over a real broker."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from writer_world import World, make_world, message

from tessera.bus.kafka import KafkaBuses, open_buses
from tessera.bus.kafka.topics import COMMANDS, RECORDS
from tessera.clock import SystemClock
from tessera.commands import OutcomeStatus
from tessera.config import KafkaSettings
from tessera.room_commands import CommandUnanswered
from tessera.storage.done_offsets import ShardDoneOffsets
from tessera.storage.shards import RoomShards
from tests.fixtures.kafka_broker import Broker
from tests.fixtures.kafka_topics import Administration, make_topics, topic_prefix

PARTITIONS = 8


@dataclass(frozen=True)
class Cluster:
    """A world on a broker."""

    world: World
    buses: KafkaBuses
    settings: KafkaSettings


@pytest.fixture
async def cluster(kafka: Broker, any_shards: RoomShards) -> AsyncIterator[Cluster]:
    """One shard, and then two; no writer yet."""
    placement = {partition: any_shards.shard_of(partition) for partition in range(PARTITIONS)}
    shards = RoomShards(any_shards.databases, placement, PARTITIONS)
    settings = kafka.settings(topic_prefix())
    await make_topics(settings, PARTITIONS)
    async with (
        open_buses(settings, partitions=PARTITIONS, read_done=ShardDoneOffsets(shards), clock=SystemClock()) as buses,
        make_world(shards, buses.commands, buses.records) as world,
    ):
        yield Cluster(world, buses, settings)


async def announced(cluster: Cluster) -> dict[int, list[int]]:
    """The positions that room.log gives a consumer from the beginning, once all that is stored has come."""
    stored = {partition: len(records) for partition, records in (await cluster.world.stored_records()).items()}
    reader = await cluster.buses.records.open_reader()
    seen: dict[int, list[int]] = {partition: [] for partition in stored}
    for partition in stored:
        await reader.assign(partition, 0)
    async with asyncio.timeout(30):
        while any(len(seen[partition]) < count for partition, count in stored.items()):
            for record in await reader.take(100):
                seen[record.partition].append(record.position)
    await reader.close()
    return seen


async def test_commands_become_records_in_the_log(cluster: Cluster, kafka: Broker) -> None:
    world = cluster.world
    async with world.writer():
        rooms = [await world.new_room() for _ in range(3)]
        await asyncio.gather(*(world.accepted(room, message(str(n))) for n in range(10) for room in rooms))
        seen = await announced(cluster)
    assert all(positions == list(range(1, len(positions) + 1)) for positions in seen.values())
    assert world.published_records() == await world.stored_records()
    reader = await cluster.buses.commands.open_reader()
    done = await ShardDoneOffsets(world.shards)(list(range(PARTITIONS)))
    for partition in seen if kafka.is_apache else ():  # others do not tell the end of a partition
        assert done[partition] == (reader.topic_id, (await reader.end_offsets([partition]))[partition])


async def test_a_successor_goes_on_where_the_last_writer_ended(cluster: Cluster) -> None:
    world = cluster.world
    async with world.writer("first"):
        room = await world.new_room()
        await world.accepted(room, message("one"))
    waiting = [asyncio.create_task(world.accepted(room, message(str(number)))) for number in range(5)]
    async with world.writer("second"):
        outcomes = await asyncio.gather(*waiting)
        assert len({outcome.event_ids for outcome in outcomes}) == 5
        await announced(cluster)


async def test_partitions_are_handed_over_under_load(cluster: Cluster) -> None:
    world = cluster.world
    async with world.writer("first") as first:
        room = await world.new_room()
        partition = world.shards.partition_of(room)
        async with world.writer("second") as second:
            for giver, target in ((first, "second"), (second, "first"), (first, "second")):
                sends = [asyncio.create_task(world.accepted(room, message(str(number)))) for number in range(5)]
                given = [await writer.hand_over(partition, target) for writer in giver.writers]
                assert given.count(True) == 1
                await asyncio.gather(*sends)
            await announced(cluster)


async def test_topics_made_anew_under_a_writer_lose_nothing_acknowledged(cluster: Cluster) -> None:
    world, administration = cluster.world, Administration(cluster.settings)
    async with world.writer():
        room = await world.new_room()
        sent = [(await world.accepted(room, message(str(number)))).event_ids for number in range(5)]
        for topic in (COMMANDS, RECORDS):
            await administration.remove(topic)
        await make_topics(cluster.settings, PARTITIONS)
        async with asyncio.timeout(60):
            for number in range(5, 10):
                command = world.command(room, message(str(number)))
                while True:
                    try:
                        outcome = await world.commands.submit(command, timeout_seconds=3)
                    except CommandUnanswered:
                        continue
                    assert outcome.status is OutcomeStatus.ACCEPTED
                    sent.append(outcome.event_ids)
                    break
        stored = await world.stored_records()
        events = [record.event.event_id for record in stored[world.shards.partition_of(room)]]
        assert all(events.count(event_id) == 1 for (event_id,) in sent)
        done = await ShardDoneOffsets(world.shards)([world.shards.partition_of(room)])
        name = f"{cluster.settings.topic_prefix}{COMMANDS}"
        topic = (await cluster.buses.connection.describe_topics([name]))[name]
        assert [topic_id for topic_id, _offset in done.values()] == [topic.topic_id]
