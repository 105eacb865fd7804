"""Who writes a partition, and how it changes hands. DESIGN section 2, invariant 1; section 11."""

import asyncio
import time

from writer_world import World, message

from services.rooms.service import RoomWriter
from tessera.commands import OutcomeStatus
from tessera.storage import leases

OWNERS = "SELECT partition, owner, epoch FROM rooms.leases WHERE owner <> '' ORDER BY partition"
END_OF = """
SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l
JOIN rooms.writers w ON (l.classid::bigint << 32) | l.objid::bigint = w.lock_key
WHERE l.locktype = 'advisory' AND w.name = $1
"""


async def until_all(world: World, *writers: RoomWriter) -> None:
    """Wait until each partition is written by one of these."""
    async with asyncio.timeout(20):
        while sum(len(one.partitions) for w in writers for one in w.writers) < world.shards.partitions:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the writers themselves look at the leases now and then


async def test_a_partition_changes_hands_by_name(any_world: World) -> None:
    world = any_world
    async with world.writer("one") as one, world.writer("two") as two:
        await until_all(world, one)
        room_id = await world.new_room()
        partition = world.shards.partition_of(room_id)
        shard = world.shards.shard_of(partition)
        index = world.shards.names.index(shard)
        sends = [asyncio.create_task(world.submit(world.command(room_id, message(f"{n}")))) for n in range(50)]
        await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
        assert not await one.writers[index].hand_over(partition, "nobody")
        assert partition in one.writers[index].partitions
        began = time.monotonic()
        assert await one.writers[index].hand_over(partition, "two")
        await world.accepted(room_id, message("after"))
        assert time.monotonic() - began < 1
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
            assert not any(one.partitions for one in second.writers)  # it has looked: the first is alive
            first.writers[0]._ownership._stopping = True  # it does not take its leases again, as if it were dead
            began = time.monotonic()
            async with database.reading() as tx:
                assert await tx.fetchval(END_OF, "first") == 1
            await until_all(world, second)
            assert time.monotonic() - began < leases.LEASE_SECONDS / 2
            await world.accepted(room_id, message("by the second"))
            async with database.reading() as tx:
                rows = await tx.fetch(OWNERS)
            assert len(rows) == world.shards.partitions
            assert {row["epoch"] for row in rows} == {2}


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
