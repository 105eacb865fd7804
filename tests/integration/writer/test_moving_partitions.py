"""A partition is moved to another shard, and back, while rooms of it are written (DESIGN section 2, invariant 8)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from moving_world import FIRST, SECOND, MovingWorld, make_moving_world, send_for_sure

from tessera.storage.database import Database

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def world(accounts: Database, new_database: Callable[[], Awaitable[str]]) -> AsyncIterator[MovingWorld]:
    """Two shards in databases of their own."""
    first, second = [await Database.connect(await new_database()) for _ in range(2)]
    async with make_moving_world(accounts, first, second) as made:
        yield made
    await first.close()
    await second.close()


async def test_under_load_nothing_is_lost_doubled_or_reordered(world: MovingWorld) -> None:
    async with world.writer("one"), world.writer("two"), world.gateway() as gateway:
        rooms = [await gateway.new_room() for _ in range(4)]
        partition = gateway.shards.partition_of(rooms[0])
        done = asyncio.Event()
        sent: dict[str, list[str]] = {room_id: [] for room_id in rooms}

        async def send_on(room_id: str) -> None:
            while not done.is_set():
                text = f"{room_id} {len(sent[room_id])}"
                await send_for_sure(gateway, room_id, text)
                sent[room_id].append(text)

        senders = [asyncio.create_task(send_on(room_id)) for room_id in rooms]
        for target in (SECOND, FIRST, SECOND):
            assert await world.mover().move(partition, target)
            await send_for_sure(gateway, rooms[0], f"in {target}")
        done.set()
        await asyncio.gather(*senders)
        for room_id in rooms:
            shard = gateway.shards.shard_of(gateway.shards.partition_of(room_id))
            assert shard == (SECOND if gateway.shards.partition_of(room_id) == partition else FIRST)
            stored = [body for body in await world.bodies(room_id, shard) if not body.startswith("in ")]
            assert stored == sent[room_id]
            assert len(stored) > 3
        positions = await world.positions(partition, SECOND)
        assert positions == list(range(1, len(positions) + 1))
        published = [record.position for record in gateway.published_records()[partition]]
        assert sorted(set(published)) == positions
