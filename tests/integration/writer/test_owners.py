"""Who writes a partition, and how it changes hands. DESIGN section 2, invariant 1; section 11."""

import asyncio
import time
from collections.abc import Callable

from writer_world import World, message

from matrixcore.identifiers import RoomId
from services.rooms.service import RoomWriter
from tessera.commands import OutcomeStatus
from tessera.storage import leases

OWNERS = "SELECT partition, owner, epoch FROM rooms.leases WHERE owner <> '' ORDER BY partition"
END_OF = """
SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l
JOIN rooms.writers w ON (l.classid::bigint << 32) | l.objid::bigint = w.lock_key
WHERE l.locktype = 'advisory' AND w.name = $1
"""


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again: the writers themselves look at the leases now and then."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def until_all(world: World, *writers: RoomWriter) -> None:
    """Wait until each partition is written by one of these."""
    await until(lambda: sum(len(one.partitions) for w in writers for one in w.writers) >= world.shards.partitions)


async def until_fair(world: World, *writers: RoomWriter) -> None:
    """Wait until nobody writes more than a fair share of any shard, and everything is written."""

    def is_fair() -> bool:
        for index, shard in enumerate(world.shards.names):
            counts = [len(writer.writers[index].partitions) for writer in writers]
            placed = len(world.shards.partitions_of(shard))
            if sum(counts) < placed or max(counts) > -(-placed // len(writers)):
                return False
        return True

    await until(is_fair)


async def new_room_of(world: World, writer: RoomWriter) -> tuple[RoomId, int]:
    """A room that this writer writes, and the number of its shard."""
    while True:
        room_id = await world.new_room()
        partition = world.shards.partition_of(room_id)
        index = world.shards.names.index(world.shards.shard_of(partition))
        if partition in writer.writers[index].partitions:
            return room_id, index


async def test_a_partition_changes_hands_by_name(any_world: World) -> None:
    world = any_world
    async with world.writer("one") as one, world.writer("two") as two:
        await until_fair(world, one, two)
        room_id, index = await new_room_of(world, one)
        partition = world.shards.partition_of(room_id)
        sends = [asyncio.create_task(world.submit(world.command(room_id, message(f"{n}")))) for n in range(50)]
        await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
        assert not await one.writers[index].hand_over(partition, "nobody")
        assert partition in one.writers[index].partitions
        began = time.monotonic()
        assert await one.writers[index].hand_over(partition, "two")
        await world.accepted(room_id, message("after"))
        assert time.monotonic() - began < leases.LEASE_SECONDS / 2  # nobody waited for a lease to end
        assert partition in two.writers[index].partitions
        assert partition not in one.writers[index].partitions
        assert {(await send).status for send in sends} == {OutcomeStatus.ACCEPTED}
    for records in (await world.stored_records()).values():
        assert [record.position for record in records] == list(range(1, len(records) + 1))


async def test_who_is_proved_gone_is_followed_at_once(world: World) -> None:
    """The lock of a killed process goes with its connection; nobody waits for its lease to run out."""
    async with world.writer("first") as first:
        await until_all(world, first)
        room_id = await world.new_room()
        database = world.shards.of_room(room_id)
        async with world.writer("second") as second:
            first.writers[
                0
            ]._partitions.ownership._stopping = True  # it does not take its leases again, as if it were dead
            began = time.monotonic()
            async with database.reading() as tx:
                assert await tx.fetchval(END_OF, "first") == 1
            await until_all(world, second)
            assert time.monotonic() - began < leases.LEASE_SECONDS / 2
            await world.accepted(room_id, message("by the second"))
            async with database.reading() as tx:
                rows = await tx.fetch(OWNERS)
            assert len(rows) == world.shards.partitions
            assert {row["epoch"] for row in rows} <= {2, 3}  # 3: handed over before, and taken back


async def test_a_stuck_statement_does_not_keep_a_partition(world: World) -> None:
    async with world.writer() as writer:
        await until_all(world, writer)
        room_id = await world.new_room()
    partition = world.shards.partition_of(room_id)
    database = world.shards.of_partition(partition)
    async with database.reading() as stuck:
        await stuck.execute("BEGIN")
        await stuck.execute("UPDATE rooms.partitions SET announced = announced WHERE partition = $1", partition)
        async with world.writer() as writer:
            await until_all(world, writer)
            await world.accepted(room_id, message("after all"))


async def test_partitions_are_shared_out_and_given_back(any_world: World) -> None:
    """Who comes gets a share while everybody writes; who drains gives all of it away, each with a short pause."""
    world = any_world
    async with world.writer("one") as one, world.writer("two") as two:
        await until_fair(world, one, two)
        rooms = [await world.new_room() for _ in range(20)]
        pauses: list[float] = []
        stopping = asyncio.Event()

        async def send_for_ever(room_id: RoomId) -> None:
            while not stopping.is_set():
                began = time.monotonic()
                await world.accepted(room_id, message())
                pauses.append(time.monotonic() - began)
                await asyncio.sleep(0.02)

        sending = [asyncio.create_task(send_for_ever(room_id)) for room_id in rooms]
        async with world.writer("three") as three:
            await until_fair(world, one, two, three)
            await one.drain()
            assert not any(writer.partitions for writer in one.writers)
            await until_fair(world, two, three)
            async with world.shards.databases[world.shards.names[0]].reading() as tx:
                assert await leases.set_draining(tx, "one", draining=False)
                assert await leases.set_draining(tx, "two")
            await until(lambda: not two.writers[0].partitions and bool(one.writers[0].partitions))
            stopping.set()
            await asyncio.gather(*sending)
    assert max(pauses) < 1
    for records in (await world.stored_records()).values():
        assert [record.position for record in records] == list(range(1, len(records) + 1))


async def test_a_partition_is_handed_over_on_request(world: World) -> None:
    async with world.writer("one") as one, world.writer("two") as two:
        await until_fair(world, one, two)
        partition = min(one.writers[0].partitions)
        database = world.shards.of_partition(partition)
        async with database.reading() as tx:
            assert await leases.ask_hand_over(tx, partition, "nobody")
            assert await leases.ask_hand_over(tx, max(one.writers[0].partitions), "two")
        await until(lambda: len(two.writers[0].partitions) > world.shards.partitions // 2)
        await until_fair(world, one, two)
