"""A partition is moved to another shard, and back, while rooms of it are written (DESIGN section 2, invariant 8)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from moving_world import FIRST, PARTITIONS, SECOND, MovingWorld, make_moving_world, send_for_sure
from writer_world import message

from matrixcore.identifiers import EventId, RoomId, ServerName
from tessera.commands import OutcomeStatus
from tessera.moving import CannotMove, clean_up
from tessera.storage import inbox, outcomes, partition_copy, partition_moves
from tessera.storage.database import Database
from tessera.storage.partitions import PartitionMoved

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


STEPS = (
    (partition_moves, "announce"),
    (partition_copy, "make_place"),
    (partition_copy, "fence"),
    (partition_copy, "copy_partition"),
    (partition_moves, "switch"),
    (partition_copy, "activate"),
    (partition_moves, "finish"),
)


class Killed(Exception):
    """The move ends here."""


def kill_at(patch: pytest.MonkeyPatch, module: ModuleType, name: str, *, after: bool) -> None:
    """Let a step be the move's last one, or the first that is not done."""
    step = getattr(module, name)

    async def killed(*arguments: Any) -> None:
        if after:
            await step(*arguments)
        raise Killed

    patch.setattr(module, name, killed)


async def test_a_move_that_was_killed_anywhere_goes_on(world: MovingWorld) -> None:
    sent: list[str] = []
    async with world.writer("one"), world.gateway() as gateway:
        room_id = await gateway.new_room()
        partition = gateway.shards.partition_of(room_id)
        target = SECOND
        for module, name in STEPS:
            for after in (False, True):
                with pytest.MonkeyPatch.context() as patch:
                    kill_at(patch, module, name, after=after)
                    with pytest.raises(Killed):
                        await world.mover().move(partition, target)
                await world.mover().move(partition, target)
                sent.append(f"{name} {after}")
                await send_for_sure(gateway, room_id, sent[-1])
                assert await world.bodies(room_id, target) == sent
                target = FIRST if target == SECOND else SECOND
    positions = await world.positions(partition, FIRST)
    assert positions == list(range(1, len(positions) + 1))


async def test_a_move_is_taken_back_unless_it_went_too_far(world: MovingWorld) -> None:
    async with world.writer("one"), world.gateway() as gateway:
        room_id = await gateway.new_room()
        partition = gateway.shards.partition_of(room_id)
        for module, name in STEPS[1:5]:
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, module, name, after=False)
                with pytest.raises(Killed):
                    await world.mover().move(partition, SECOND)
            assert await world.mover().move(partition, FIRST)
            await send_for_sure(gateway, room_id, name)
        assert await world.bodies(room_id, FIRST) == [name for _, name in STEPS[1:5]]
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, partition_copy, "activate", after=False)
            with pytest.raises(Killed):
                await world.mover().move(partition, SECOND)
        with pytest.raises(CannotMove, match="finish that move first"):
            await world.mover().move(partition, FIRST)
        assert await world.mover().move(partition, SECOND)
        assert not await world.mover().move(partition, SECOND)


async def test_who_still_believes_in_the_source_changes_nothing(
    world: MovingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "MOVED_LOOKS", 2)
    async with world.gateway(following=False) as gateway:
        async with world.writer("old", following=False):
            room_id = await gateway.new_room()
            partition = gateway.shards.partition_of(room_id)
            head = (await world.positions(partition, FIRST))[-1]
            await world.mover().move(partition, SECOND)
            command = gateway.command(room_id, message("once"))
            with pytest.raises(PartitionMoved):  # whether it happens is not known: neither withdrawn nor refused
                await gateway.commands.submit(command, timeout_seconds=0.3)
        assert (await world.positions(partition, FIRST))[-1] == head
        async with world.writer("new"):
            outcome = await gateway.submit(command)
        assert outcome.status is OutcomeStatus.ACCEPTED
        assert await world.bodies(room_id, SECOND) == ["once"]
        assert await world.bodies(room_id, FIRST) == []


async def test_what_no_head_guards_is_waited_for_and_then_refused(world: MovingWorld) -> None:
    first, second = world.databases.values()
    async with world.gateway() as gateway:
        room_id = RoomId("!room:there.org")
        partition = gateway.shards.partition_of(room_id)

        def row(event_id: str) -> inbox.NewInboxRow:
            return inbox.NewInboxRow(partition, room_id, ServerName("there.org"), EventId(event_id), b"{}", 1)

        async with first.transaction() as tx:
            ids = await inbox.add(tx, [row("$early")])
            await tx.execute("INSERT INTO rooms.missing_events VALUES ($1, '$lacking', $2)", room_id, ids[0])
        async with first.transaction() as tx:
            ids += await inbox.add(tx, [row("$late")])
            moving = asyncio.create_task(world.mover().move(partition, SECOND))
            while await first.fetchval("SELECT state FROM rooms.partitions WHERE partition = $1", partition) != "moved":
                assert not moving.done()
                await asyncio.sleep(0)
            with pytest.raises(PartitionMoved):
                async with first.reading() as other:
                    await inbox.add(other, [row("$too late")])
        assert await moving
        async with second.reading() as tx:
            assert [one.event_id for one in await inbox.load(tx, room_id, ids)] == ["$early", "$late"]
            assert [one.event_id for one in await inbox.list_missing(tx, room_id, 10)] == ["$lacking"]


async def test_what_is_left_behind_is_deleted_and_nothing_else(world: MovingWorld) -> None:
    async with world.writer("one"), world.gateway() as gateway:
        rooms = [await gateway.new_room() for _ in range(4)]
        partition = gateway.shards.partition_of(rooms[0])
        for room_id in rooms:
            await send_for_sure(gateway, room_id, "early")
        await world.mover().move(partition, SECOND)
        lines: list[str] = []
        clean = partial(clean_up, world.accounts, world.databases, PARTITIONS, lines.append)
        assert not await clean()
        assert "moved a moment ago" in lines[0]
        before = {room_id: await world.bodies(room_id, FIRST) for room_id in rooms}
        assert set(map(len, before.values())) == {1}
        assert await clean(grace_seconds=0.0)
        assert await clean(grace_seconds=0.0)
        assert len(lines) == 2
        for room_id in rooms:
            moved = gateway.shards.partition_of(room_id) == partition
            assert await world.bodies(room_id, FIRST) == ([] if moved else ["early"])
            await send_for_sure(gateway, room_id, "late")
        for table in partition_copy.BY_PARTITION:
            where = f"SELECT count(*) FROM rooms.{table} WHERE partition = {partition}"
            assert await world.databases[FIRST].fetchval(where) == 0
        # A partition that comes back takes the place of what it left.
        await world.mover().move(partition, FIRST)
        assert await world.bodies(rooms[0], FIRST) == ["early", "late"]


async def test_a_move_that_cannot_be_is_refused_before_it_begins(
    world: MovingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotMove, match="no shard third"):
        await world.mover().move(0, "third")
    twice = replace(world.mover(), databases={**world.databases, "again": world.databases[FIRST]})
    with pytest.raises(CannotMove, match="the same database"):
        await twice.move(0, "again")
    await world.databases[SECOND].execute("ALTER TABLE rooms.rooms ADD COLUMN more integer")
    with pytest.raises(CannotMove, match="tables differ"):
        await world.mover().move(0, SECOND)
    await world.databases[SECOND].execute("CREATE TABLE rooms.more (room_id text)")
    with pytest.raises(CannotMove, match=r"does not know the table rooms\.more"):
        await world.mover().move(0, SECOND)
    async with world.accounts.reading() as tx:
        assert await partition_moves.list_moves(tx) == []
    assert not await world.mover().move(0, FIRST)
