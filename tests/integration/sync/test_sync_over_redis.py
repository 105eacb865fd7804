"""What /sync makes of a Redis that is there, is away, comes back, and has forgotten everything."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from room_writing import running_writer
from sync_world import ALICE, BOB, World, running_services
from test_sync import bodies, joined, wait_parked

from services.sync import metrics, sync_instance
from tessera.clock import SystemClock
from tessera.fanout import TypingChange
from tessera.fanout.redis import RedisFanout, RedisUnavailable, open_fanout
from tessera.ids import IdSource
from tessera.records import PartitionBatch
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tests.fixtures.valkey import ValkeyProcess


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    """A server that the test may do with as it likes."""
    server = ValkeyProcess()
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def redis_world(accounts: Database, shards: RoomShards, valkey: ValkeyProcess) -> AsyncIterator[World]:
    """Services that hear only over Redis, and publish by a connection of their own."""
    async with AsyncExitStack() as stack:
        settings = valkey.settings("test:")
        here = await stack.enter_async_context(open_fanout(settings, SystemClock(), IdSource()))
        there = await stack.enter_async_context(open_fanout(settings, SystemClock(), IdSource()))
        writer = await stack.enter_async_context(running_writer(shards, SystemClock()))
        yield await stack.enter_async_context(running_services(accounts, shards, writer, fanouts=(here, there)))


def stop_comparing(patch: pytest.MonkeyPatch) -> None:
    """Leave only the hints, and what a reconnect does."""
    patch.setattr(sync_instance, "BLIND_COMPARE_SECONDS", 3_600.0)


async def until_healthy(world: World, *, healthy: bool) -> None:
    """Wait until both ends know how Redis is."""
    for fanout in (world.fanout, world.heard_fanout):
        assert isinstance(fanout, RedisFanout)
        for _ in range(1_000):
            if await is_up(fanout) == healthy:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail(f"not {healthy} in time")


async def is_up(fanout: RedisFanout) -> bool:
    """Whether it publishes and hears."""
    try:
        await fanout.ping()
    except RedisUnavailable:
        return False
    return True


@pytest.fixture
def no_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_comparing(monkeypatch)


@pytest.mark.usefixtures("no_comparing")
async def test_hints_alone_bring_messages_account_data_and_typing(redis_world: World) -> None:
    world = redis_world
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    waiting = await wait_parked(world, bob)
    snapshots = metrics.ANSWERS_FROM_DATABASE.value
    await world.say(room_id, ALICE, "hello")
    assert bodies(joined(await waiting, room_id)) == ["hello"]
    assert metrics.ANSWERS_FROM_DATABASE.value == snapshots
    waiting = await wait_parked(world, bob)
    await world.set_data(BOB, "org.test", {"is": 1})
    assert (await waiting)["account_data"]["events"][0]["content"] == {"is": 1}
    waiting = await wait_parked(world, bob)
    await world.fanout.publish_typing(TypingChange(room_id, ALICE, 20_000))
    assert joined(await waiting, room_id)["ephemeral"]["events"][0]["content"]["user_ids"] == [ALICE]


@pytest.mark.usefixtures("no_comparing")
async def test_a_batch_that_is_too_large_to_publish_is_read(redis_world: World) -> None:
    world = redis_world
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    waiting = await wait_parked(world, bob)
    batches = [await world.writer.message(room_id, ALICE, f"{number}" + "x" * 60_000) for number in range(6)]
    records = tuple(record for batch in batches for record in batch.records)
    await world.publish(PartitionBatch(1, batches[0].partition, batches[0].first, batches[-1].last, records))
    assert [body[0] for body in bodies(joined(await waiting, room_id))] == list("012345")


@pytest.mark.usefixtures("no_comparing")
@pytest.mark.parametrize("accident", ["restart", "cut"])
async def test_what_was_missed_is_read_after_a_reconnect(
    redis_world: World, valkey: ValkeyProcess, accident: str
) -> None:
    world = redis_world
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    waiting = await wait_parked(world, bob)
    if accident == "restart":
        valkey.kill()
        await until_healthy(world, healthy=False)
        await world.say(room_id, ALICE, "unheard")
        valkey.restart()
    else:
        batch = await world.writer.message(room_id, ALICE, "unheard")
        assert batch.records
        valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
    assert bodies(joined(await waiting, room_id)) == ["unheard"]
    await until_healthy(world, healthy=True)
    waiting = await wait_parked(world, bob)
    await world.say(room_id, ALICE, "heard")
    assert bodies(joined(await waiting, room_id)) == ["heard"]


async def test_without_redis_messages_and_logs_come_a_little_later(redis_world: World, valkey: ValkeyProcess) -> None:
    world = redis_world
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    valkey.kill()
    await until_healthy(world, healthy=False)
    waiting = await wait_parked(world, bob)
    await world.say(room_id, ALICE, "without hints")
    assert bodies(joined(await waiting, room_id)) == ["without hints"]
    waiting = await wait_parked(world, bob)
    await world.send_to_device(ALICE, BOB, "D", {"key": 1})
    assert [event["content"] for event in (await waiting)["to_device"]["events"]] == [{"key": 1}]
    # Somebody new, of whom nothing was known before.
    alice = world.client(ALICE)
    await alice.sync()
    waiting = await wait_parked(world, alice)
    await world.say(room_id, BOB, "to you too")
    assert bodies(joined(await waiting, room_id)) == ["to you too"]


@pytest.mark.usefixtures("no_comparing")
async def test_an_emptied_redis_is_as_good_as_a_full_one(redis_world: World, valkey: ValkeyProcess) -> None:
    world = redis_world
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    waiting = await wait_parked(world, bob)
    assert valkey.command("FLUSHALL") == "OK"
    await world.say(room_id, ALICE, "hello")
    assert bodies(joined(await waiting, room_id)) == ["hello"]
