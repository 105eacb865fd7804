"""The writer outlives what clients send and what PostgreSQL does. DESIGN section 2, invariants 3 and 11; section 11."""

import asyncio
from typing import Any

import pytest
from test_batches import Poison
from writer_world import ALICE, World, message

from matrixcore.identifiers import RoomId
from services.rooms import deciding
from services.rooms.foreseeing import Foreseen
from tessera.bus.admission import UNDONE_LIMIT
from tessera.commands import Append, NewEvent, OutcomeStatus
from tessera.storage import dead_letters, writer_batch
from tessera.storage.database import Transaction
from tessera.storage.rooms import Loaded, Wanted
from tessera.storage.writer_batch import CommitResult, CommitUnknown, WriterBatch

END_ALL = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.mark.parametrize(
    "event",
    [
        NewEvent("m.room.topic", "\0", {"topic": "x"}),
        NewEvent("a\0b", None, {}),
        NewEvent("m.room.message", None, {"body": "a\0b"}),
        NewEvent("m.room.message", None, {"m.relates_to": {"rel_type": "m.thread", "event_id": "$\0"}}),
        NewEvent("m.room.redaction", None, {}, redacts="$\0"),  # type: ignore[arg-type]
        NewEvent("m.room.message", None, {"m.mentions": {"user_ids": ["@\0:here.org"]}}),
        NewEvent("m.room.message", None, {"body": "\ud800"}),
        NewEvent("m.room.message", None, {"m.mentions": {"user_ids": ["@\ud800:here.org"]}}),
        NewEvent("m.room.member", "@\ud800:here.org", {"membership": "invite"}),
        NewEvent("m.room.message", None, {"number": 2**70}),
        NewEvent("m.room.message", None, {"number": 1.5}),
        NewEvent("m.room.member", "no user", {"membership": "invite"}),
        NewEvent("m.room.member", "", {"membership": "ban"}),
        NewEvent("m.room.member", ALICE, {"membership": ["join"]}),
        NewEvent("m.room.power_levels", "", {"users": {ALICE: 100}, "notifications": {"room": {}}}),
        NewEvent("m.room.power_levels", "", {"users": [], "events": 3}),
        NewEvent("m.room.create", "", {}),
        NewEvent("m.room.history_visibility", "", {"history_visibility": {}}),
        NewEvent("m.room.message", None, {"m.relates_to": {"rel_type": 3, "event_id": []}}),
        NewEvent("m.room.message", None, {"m.mentions": {"user_ids": [[], {}, 3], "room": True}}),
        NewEvent("m.room.message", None, {"m.mentions": {"room": True}, "msgtype": [1]}),
    ],
)
async def test_no_event_breaks_the_writer(any_world: World, event: NewEvent) -> None:
    world = any_world
    async with world.writer():
        room_id, other = await world.new_room(), await world.new_room()
        odd, fine = await asyncio.gather(
            world.submit(world.command(room_id, Append(event))), world.submit(world.command(other, message("fine")))
        )
        assert fine.status is OutcomeStatus.ACCEPTED
        assert odd.http_status in (200, 400, 403, 404, 413), (odd.http_status, odd.error)
        await world.accepted(room_id, message("after"))


async def test_lost_connections_are_made_again(any_world: World) -> None:
    world = any_world
    async with world.writer() as writer:
        rooms = [await world.new_room() for _ in range(4)]
        for _ in range(3):
            sends = [
                asyncio.create_task(world.submit(world.command(rooms[number % 4], message(f"{number}"))))
                for number in range(40)
            ]
            await asyncio.sleep(0)
            for database in world.shards.databases.values():
                async with database.reading() as tx:
                    await tx.fetchval(END_ALL)
            assert {(await send).status for send in sends} == {OutcomeStatus.ACCEPTED}
        assert sum(len(one.partitions) for one in writer.writers) == world.shards.partitions
    stored = await world.stored_records()
    for records in stored.values():
        assert [record.position for record in records] == list(range(1, len(records) + 1))
    assert sum(len(records) for records in stored.values()) == 4 * 4 + 3 * 40


async def test_what_was_bisected_leaves_no_offset_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.writer() as writer:
        rooms: dict[int, RoomId] = {}
        while True:  # two rooms of one partition, whose commands lie between each other's
            room_id = await world.new_room()
            partition = world.shards.partition_of(room_id)
            if partition in rooms:
                break
            rooms[partition] = room_id
        pair = (room_id, rooms[partition])
        monkeypatch.setattr(deciding, "commit", Poison().commit)
        texts = ["good 1", "good 2", "good 3", "poison", "good 4", "good 5", "poison too", "good 6"]
        sends = [world.command(pair[number % 2], message(text)) for number, text in enumerate(texts)]
        await asyncio.gather(*map(world.submit, sends))
        (owned,) = [one._partitions.find(partition) for one in writer.writers if partition in one.partitions]
        assert owned is not None
        assert not owned.undone
        assert owned.done_offset == owned.taken_offset
        for start in range(0, UNDONE_LIMIT + 200, 200):
            more = [world.command(room_id, message(f"{start + number}")) for number in range(200)]
            assert {result.status for result in await asyncio.gather(*map(world.submit, more))} == {
                OutcomeStatus.ACCEPTED
            }


class Deadly:
    """Loses the connection at whatever holds the word: the writer never learns of a commit."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def commit(self, tx: Transaction, batch: WriterBatch) -> CommitResult:
        if any(b"deadly" in row.pdu for row in batch.rows.get("events", ())):  # type: ignore[attr-defined]
            self.batches.append(len(batch.outcomes))
            raise CommitUnknown("the connection was lost")
        return await writer_batch.commit(tx, batch)


async def test_what_ends_its_writer_again_and_again_is_a_dead_letter(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.writer():
        room_id = await world.new_room()
        deadly = Deadly()
        monkeypatch.setattr(deciding, "commit", deadly.commit)
        texts = ["good 1", "deadly", "good 2", "good 3"]
        sends = [world.command(room_id, message(text)) for text in texts]
        results = await asyncio.gather(*map(world.submit, sends))
        assert [result.http_status for result in results] == [200, 500, 200, 200]
        # First with the others, then three times by itself.
        assert deadly.batches == [4, 1, 1, 1]
        async with world.shards.of_room(room_id).reading() as tx:
            assert [letter.command_id for letter in await dead_letters.list_dead_letters(tx, 10)] == [sends[1].id]
            assert await tx.fetchval("SELECT count(*) FROM rooms.command_attempts") == 0
        await world.accepted(room_id, message("after"))


async def test_a_partition_that_goes_while_its_batch_is_built_takes_no_command_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.writer() as writer:
        room_id = await world.new_room()
        partition = world.shards.partition_of(room_id)
        foresee, losses = deciding.foresee, iter((True, True))

        async def foresee_and_lose(*args: Any) -> Foreseen:
            if next(losses, False):
                for one in writer.writers:
                    one._partitions.lose([partition], "a test")
            return await foresee(*args)

        monkeypatch.setattr(deciding, "foresee", foresee_and_lose)
        assert (await world.accepted(room_id, message("as ever"))).position > 0
        assert next(losses, None) is None
        async with world.shards.of_room(room_id).reading() as tx:
            assert await dead_letters.list_dead_letters(tx, 10) == []


async def test_what_was_loaded_before_a_partition_came_back_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may have had it meanwhile."""
    async with world.writer() as writer:
        room_id = await world.new_room()
        database, partition = world.shards.of_room(room_id), world.shards.partition_of(room_id)
        load, losses = deciding.load, iter((True,))

        def lose() -> None:
            for one in writer.writers:
                one._partitions.lose([partition], "a test")

        async def load_and_lose(tx: Transaction, wanted: Wanted) -> Loaded:
            loaded = await load(tx, wanted)
            if next(losses, False):
                lose()
                await database.execute("UPDATE rooms.rooms SET invited_count = 7 WHERE room_id = $1", room_id)
            return loaded

        lose()
        monkeypatch.setattr(deciding, "load", load_and_lose)
        await world.accepted(room_id, message("as ever"))
        assert await database.fetchval("SELECT invited_count FROM rooms.rooms WHERE room_id = $1", room_id) == 7


async def test_what_breaks_the_writer_once_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.writer():
        room_id = await world.new_room()
        foresee, breaks = deciding.foresee, iter((True, True))

        async def foresee_and_break(*args: Any) -> Foreseen:
            if next(breaks, False):
                raise RuntimeError("nobody foresaw this")
            return await foresee(*args)

        monkeypatch.setattr(deciding, "foresee", foresee_and_break)
        assert (await world.accepted(room_id, message("as ever"))).position > 0
        assert next(breaks, None) is None


async def test_stop_before_the_start_returns(world: World) -> None:
    async with world.writer() as writer:
        pass
    async with asyncio.timeout(5):
        await writer.stop()
