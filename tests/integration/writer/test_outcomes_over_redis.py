"""Gateways and writers in processes of their own: the outcome comes over Redis, and without it all the same."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack

import pytest
from writer_world import World, make_world, message

from tessera.clock import SystemClock
from tessera.commands import Outcome, OutcomeStatus
from tessera.fanout import ReplyAddresses
from tessera.fanout.redis import RedisFanout, open_fanout
from tessera.ids import IdSource
from tessera.records import PartitionBatch
from tessera.room_commands import RoomCommands
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.shards import RoomShards
from tests.fixtures.valkey import ValkeyProcess


class CountingOutcomes(ShardOutcomes):
    """Counts how often the rows are asked."""

    queries = 0

    async def find(self, shard: str, command_ids: Sequence[bytes]) -> list[Outcome]:
        self.queries += 1
        return await super().find(shard, command_ids)


class Gateway:
    """One that hears over Redis, and the outcomes that it looked up."""

    def __init__(self, world: World, fanout: RedisFanout, shards: RoomShards) -> None:
        self.fanout = fanout
        self.outcomes = CountingOutcomes(shards)
        self.commands = RoomCommands(world.bus, fanout, self.outcomes, reply_patience_seconds=60)


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    server = ValkeyProcess()
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def cluster(shards: RoomShards, valkey: ValkeyProcess) -> AsyncIterator[tuple[World, list[Gateway]]]:
    """A writer that publishes over Redis, and two gateways."""
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(make_world(shards))
        publisher, *hearers = [
            await stack.enter_async_context(open_fanout(valkey.settings("test:"), SystemClock(), IdSource()))
            for _ in range(3)
        ]
        publish_here = world.fanout.publish_batches

        async def publish_everywhere(
            batches: Sequence[PartitionBatch], outcomes: Sequence[Outcome], reply_to: ReplyAddresses | None = None
        ) -> None:
            await publish_here(batches, outcomes)
            await publisher.publish_batches(batches, outcomes, reply_to)

        world.fanout.publish_batches = publish_everywhere  # type: ignore[method-assign]
        await stack.enter_async_context(world.writer())
        gateways = [Gateway(world, fanout, shards) for fanout in hearers]
        for gateway in gateways:
            await gateway.commands.start()
            polling = asyncio.create_task(gateway.commands.poll_overdue())
            stack.push_async_callback(gateway.commands.stop)
            stack.callback(polling.cancel)
        yield world, gateways


async def test_each_gateway_gets_its_own_outcomes_without_a_query(cluster: tuple[World, list[Gateway]]) -> None:
    world, gateways = cluster
    room_id = await world.new_room()
    sends = [
        gateways[number % 2].commands.submit(world.command(room_id, message(str(number))), timeout_seconds=30)
        for number in range(20)
    ]
    outcomes = await asyncio.gather(*sends)
    assert {outcome.status for outcome in outcomes} == {OutcomeStatus.ACCEPTED}
    assert len({outcome.event_ids for outcome in outcomes}) == 20
    assert [gateway.outcomes.queries for gateway in gateways] == [0, 0]


async def test_one_request_at_two_gateways_is_answered_at_both(cluster: tuple[World, list[Gateway]]) -> None:
    world, gateways = cluster
    room_id = await world.new_room()
    command = world.command(room_id, message())
    outcomes = await asyncio.gather(*(gateway.commands.submit(command, timeout_seconds=30) for gateway in gateways))
    assert outcomes[0] == outcomes[1]
    late = await gateways[1].commands.submit(command, timeout_seconds=30)
    assert late == outcomes[0]
    assert [gateway.outcomes.queries for gateway in gateways] == [0, 0]


async def test_without_redis_the_rows_are_asked(cluster: tuple[World, list[Gateway]], valkey: ValkeyProcess) -> None:
    world, (gateway, _) = cluster
    room_id = await world.new_room()
    valkey.kill()
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number in range(5):
        outcome = await gateway.commands.submit(world.command(room_id, message(str(number))), timeout_seconds=30)
        assert outcome.status is OutcomeStatus.ACCEPTED
    assert loop.time() - started < 10  # far below the patience that a living Redis gets
    assert gateway.outcomes.queries >= 5
    valkey.restart()
    outcome = await gateway.commands.submit(world.command(room_id, message("again")), timeout_seconds=30)
    assert outcome.status is OutcomeStatus.ACCEPTED
