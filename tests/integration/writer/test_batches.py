"""What a batch costs, decides and leaves behind. DESIGN section 2, invariants 1 to 5; section 3."""

import asyncio
from typing import Any

import pytest
from writer_world import BOB, World, message

from matrixcore.identifiers import RoomId, UserId
from services.rooms import deciding
from tessera.bus import LocalCommandBus
from tessera.commands import Append, NewEvent, OutcomeStatus
from tessera.records import RecordKind, encode_record
from tessera.storage import dead_letters, outcomes, writer_batch
from tessera.storage.database import Transaction
from tessera.storage.writer_batch import CommitResult, WriterBatch


class Commits:
    """The batches that reached PostgreSQL, and what came of them; may hold them back."""

    def __init__(self) -> None:
        self.batches: list[WriterBatch] = []
        self.results: list[CommitResult] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.came_back = asyncio.Event()

    async def commit(self, tx: Transaction, batch: WriterBatch) -> CommitResult:
        self.reached.set()
        await self.gate.wait()
        result = await writer_batch.commit(tx, batch)
        self.batches.append(batch)
        self.results.append(result)
        self.came_back.set()
        return result


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    made = Commits()
    monkeypatch.setattr(deciding, "commit", made.commit)
    return made


async def test_a_warm_send_is_one_statement(world: World) -> None:
    async with world.writer():
        room_id = await world.new_room()
        await world.accepted(room_id, message())
        database = world.shards.of_room(room_id)
        before = len(world.fanout.batches)
        async with database.counting() as count:
            await world.accepted(room_id, message())
        # The lease's connection was taken before, so its renewals are not counted.
        assert count.statements == 1
        assert count.transactions == 0
        assert len(world.fanout.batches) == before + 1


async def test_sends_in_different_rooms_at_once_are_one_commit(any_world: World, commits: Commits) -> None:
    world = any_world
    async with world.writer():
        rooms = [await world.new_room() for _ in range(12)]
        while len(world.shards.group_rooms(rooms)) < len(world.shards.names):
            rooms.append(await world.new_room())
        commits.batches.clear()
        sent = [world.submit(world.command(room_id, message())) for room_id in rooms]
        results = await asyncio.gather(*sent)
        assert {result.status for result in results} == {OutcomeStatus.ACCEPTED}
        assert len(commits.batches) == len(world.shards.names)
        assert sum(len(batch.outcomes) for batch in commits.batches) == len(rooms)


async def test_the_next_batch_gathers_while_one_commits(world: World, commits: Commits) -> None:
    async with world.writer():
        room_id = await world.new_room()
        commits.batches.clear()
        commits.reached.clear()
        commits.gate.clear()
        first = asyncio.create_task(world.submit(world.command(room_id, message("first"))))
        await commits.reached.wait()
        others = [asyncio.create_task(world.submit(world.command(room_id, message(str(n))))) for n in range(9)]
        await asyncio.sleep(0)
        commits.gate.set()
        await asyncio.gather(first, *others)
        assert [len(batch.outcomes) for batch in commits.batches] == [1, 9]


async def test_a_command_id_is_one_event(any_world: World) -> None:
    world = any_world
    async with world.writer():
        room_id = await world.new_room()
        command = world.command(room_id, message("single"))
        first = await world.submit(command)
        for _ in range(3):
            await world.bus.send(command)  # delivered again, as after a lost acknowledgement
        again = await world.submit(command)
        after = await world.accepted(room_id, message("after"))
    assert again.event_ids == first.event_ids
    assert again.position == first.position
    assert after.position == first.position + 1
    count = "SELECT count(*) FROM rooms.events WHERE pdu::text LIKE '%' || $1 || '%'"
    assert await world.shards.of_room(room_id).fetchval(count, b"single".hex()) == 1


async def test_a_command_twice_in_one_batch_is_one_event(world: World, commits: Commits) -> None:
    async with world.writer():
        room_id = await world.new_room()
        commits.reached.clear()
        commits.gate.clear()
        blocker = asyncio.create_task(world.submit(world.command(room_id, message())))
        await commits.reached.wait()
        command = world.command(room_id, message("single"))
        await world.bus.send(command)
        twin = asyncio.create_task(world.submit(command))
        await asyncio.sleep(0)
        commits.gate.set()
        outcome, blocked = await twin, await blocker
        assert outcome.position == blocked.position + 1
        assert (await world.accepted(room_id, message())).position == outcome.position + 1


async def test_a_withdrawn_command_does_not_happen(world: World) -> None:
    async with world.writer():
        room_id = await world.new_room()
        command, other = world.command(room_id, message("withdrawn")), world.command(room_id, message("kept"))
        async with world.shards.of_room(room_id).reading() as tx:
            assert (await outcomes.withdraw(tx, command)).status is OutcomeStatus.WITHDRAWN
        await world.bus.send(command)
        kept = await world.submit(other)
        assert kept.status is OutcomeStatus.ACCEPTED
        bodies = [r.event.client for records in world.published_records().values() for r in records]
        assert not any(b"withdrawn" in body for body in bodies)
        # The client tries again under the same id, and now it happens.
        assert (await world.submit(command)).status is OutcomeStatus.ACCEPTED


async def test_who_withdraws_while_the_commit_is_under_way_decides(world: World, commits: Commits) -> None:
    async with world.writer():
        room_id = await world.new_room()
        commits.gate.clear()
        commits.reached.clear()
        command = world.command(room_id, message("late"))
        await world.bus.send(command)
        other = asyncio.create_task(world.submit(world.command(room_id, message("other"))))
        await commits.reached.wait()
        async with world.shards.of_room(room_id).reading() as tx:
            assert (await outcomes.withdraw(tx, command)).status is OutcomeStatus.WITHDRAWN
        commits.gate.set()
        assert (await other).status is OutcomeStatus.ACCEPTED
        bodies = [r.event.client for records in world.published_records().values() for r in records]
        assert not any(b"late" in body for body in bodies)


async def test_a_room_is_created_whole_or_not_at_all(any_world: World) -> None:
    world = any_world
    async with world.writer():
        forbidden = NewEvent("m.room.member", BOB, {"membership": "join"})  # nobody joins somebody else
        command = world.creation("11", NewEvent("m.room.name", "", {"name": "n"}), forbidden)
        outcome = await world.submit(command)
        assert outcome.status is OutcomeStatus.REFUSED
        assert outcome.http_status == 403
        database = world.shards.of_room(command.room_id)
        for table in ("rooms", "events", "records", "current_state", "state_history", "room_servers"):
            assert await database.fetchval(f"SELECT count(*) FROM rooms.{table}") == 0, table
        assert world.published_records() == {}
        room_id = await world.new_room()
        again = await world.submit(world.command(room_id, world.creation().body))
        assert again.status is OutcomeStatus.REFUSED


@pytest.mark.parametrize("version", ["1", "3", "6", "10", "11", "12"])
async def test_positions_are_dense_and_records_read_back_are_those_published(world: World, version: str) -> None:
    async with world.writer():
        rooms = [await world.new_room(version) for _ in range(2)]
        for room_id in rooms:
            await world.accepted(room_id, Append(NewEvent("m.room.member", BOB, {"membership": "join"})), BOB)
            await world.accepted(room_id, message("hello @bob", **{"m.mentions": {"user_ids": [BOB]}}))
            root = (await world.accepted(room_id, message("root"))).event_ids[0]
            relation = {"rel_type": "m.thread", "event_id": root}
            await world.accepted(room_id, message("reply", **{"m.relates_to": relation}), BOB)
            await world.accepted(room_id, Append(NewEvent("m.room.topic", "", {"topic": "é\u2028<"})))
            carol = "@carol:elsewhere.org"
            await world.accepted(room_id, Append(NewEvent("m.room.member", carol, {"membership": "invite"})))
            await world.accepted(room_id, Append(NewEvent("m.room.topic", "", {"topic": "again"}), "DEV", "txn"))
        refused = await world.submit(world.command(rooms[0], message(), sender=UserId("@eve:here.org")))
        assert refused.http_status == 403
    published, stored = world.published_records(), await world.stored_records()
    assert stored.keys() == published.keys()
    for partition, records in stored.items():
        assert [record.position for record in records] == list(range(1, len(records) + 1))
        head = "SELECT head, announced FROM rooms.partitions WHERE partition = $1"
        assert tuple(await world.shards.of_partition(partition).fetchrow(head, partition)) == (len(records),) * 2
        assert [encode_record(r) for r in records] == [encode_record(r) for r in published[partition]]


async def test_a_redaction_is_told_as_it_is_read_back(world: World) -> None:
    async with world.writer():
        room_id = await world.new_room()
        target = (await world.accepted(room_id, message("secret"))).event_ids[0]
        await world.accepted(room_id, Append(NewEvent("m.room.redaction", None, {}, redacts=target)))
    published, stored = world.published_records(), await world.stored_records()
    (partition,) = stored
    pairs = list(zip(stored[partition], published[partition], strict=True))
    assert pairs[-1][0].kind is RecordKind.REDACTION_APPLIED
    for read_back, told in pairs:
        if told.kind is RecordKind.EVENT and told.event.event_id == target:
            assert b"secret" in told.event.client
            assert b"secret" not in read_back.event.client
        else:
            assert encode_record(read_back) == encode_record(told)


async def test_of_two_writers_the_first_commits_nothing_more(any_world: World, commits: Commits) -> None:
    world = any_world
    async with world.writer("first"):
        room_id = await world.new_room()
        database = world.shards.of_room(room_id)
        commits.gate.clear()
        commits.reached.clear()
        held = world.command(room_id, message("by the zombie"))
        answer = asyncio.create_task(world.submit(held))
        await commits.reached.wait()
        # The first is away for too long: its leases are over, while its batch is already on the way.
        for shard in world.shards.databases.values():
            await shard.execute("UPDATE rooms.writers SET draining = true")  # and it takes none again
            await shard.execute("UPDATE rooms.leases SET owner = ''")
        other_bus = LocalCommandBus("other topic")
        async with world.writer("second", other_bus):
            partition = world.shards.partition_of(room_id)
            head = await database.fetchval("SELECT head FROM rooms.partitions WHERE partition = $1", partition)
            commits.results.clear()
            commits.came_back.clear()
            commits.gate.set()
            await commits.came_back.wait()
            assert commits.results[0].moved == frozenset()
            row = await database.fetchrow("SELECT head, epoch FROM rooms.partitions WHERE partition = $1", partition)
            assert row["head"] == head
            assert not answer.done()
            await other_bus.send(held)
            outcome = await answer
            assert outcome.status is OutcomeStatus.ACCEPTED
            assert outcome.position == head + 1
    records = (await world.stored_records())[partition]
    assert sum(b"by the zombie" in record.event.client for record in records) == 1


async def test_a_restart_in_the_middle_loses_and_doubles_nothing(world: World) -> None:
    rooms: list[RoomId] = []
    async with world.writer():
        rooms = [await world.new_room() for _ in range(3)]
        texts = [f"message {number}" for number in range(60)]
        sends = [
            asyncio.create_task(world.submit(world.command(rooms[number % 3], message(text))))
            for number, text in enumerate(texts)
        ]
        await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
    async with world.writer():
        assert {(await send).status for send in sends} == {OutcomeStatus.ACCEPTED}
    stored = await world.stored_records()
    clients = [record.event.client for records in stored.values() for record in records]
    for text in texts:
        assert sum(f'"{text}"'.encode() in client for client in clients) == 1
    for records in stored.values():
        assert [record.position for record in records] == list(range(1, len(records) + 1))


class Poison:
    """Makes PostgreSQL refuse what holds the word, while it is switched on."""

    def __init__(self) -> None:
        self.is_on = True

    async def commit(self, tx: Transaction, batch: WriterBatch) -> CommitResult:
        if self.is_on and any(b"poison" in row.pdu for row in batch.rows.get("events", ())):  # type: ignore[attr-defined]
            edges: list[Any] = batch.rows["edges"]
            edges.append((edges[0][0], None, None, None))  # breaks NOT NULL
        return await writer_batch.commit(tx, batch)


async def test_what_postgresql_refuses_is_a_dead_letter_in_nobodys_way(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = any_world
    async with world.writer():
        rooms = [await world.new_room() for _ in range(4)]
        monkeypatch.setattr(deciding, "commit", Poison().commit)
        poison = world.command(rooms[0], message("poison"))
        sends = [world.command(rooms[number % 4], message(f"good {number}")) for number in range(12)]
        results = await asyncio.gather(*map(world.submit, [*sends[:6], poison, *sends[6:]]))
        assert results[6].status is OutcomeStatus.REFUSED
        assert results[6].http_status == 500
        others = [result.status for number, result in enumerate(results) if number != 6]
        assert set(others) == {OutcomeStatus.ACCEPTED}
        async with world.shards.of_room(rooms[0]).reading() as tx:
            (letter,) = await dead_letters.list_dead_letters(tx, 10)
        assert letter[:3] == (poison.id, poison.partition, rooms[0])
        assert (await world.accepted(rooms[0], message("after"))).position > 0


async def test_a_dead_letter_is_replayed_or_dropped_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.writer():
        room_id = await world.new_room()
        poison = Poison()
        monkeypatch.setattr(deciding, "commit", poison.commit)
        commands = [world.command(room_id, message(f"poison {number}")) for number in range(2)]
        assert [(await world.submit(command)).http_status for command in commands] == [500, 500]
        async with world.shards.of_room(room_id).reading() as tx:
            assert await dead_letters.replay(tx, b"unknown") is None
            for _ in range(2):  # in vain, and the letter is dead again
                again = await dead_letters.replay(tx, commands[0].id)
                assert again == commands[0]
                assert await dead_letters.replay(tx, commands[0].id) is None
                assert (await world.submit(again)).http_status == 500
            poison.is_on = False
            assert await dead_letters.replay(tx, commands[0].id) is not None
            assert (await world.submit(commands[0])).status is OutcomeStatus.ACCEPTED
            assert await dead_letters.drop(tx, commands[1].id)
            assert not await dead_letters.drop(tx, commands[1].id)
            assert await dead_letters.list_dead_letters(tx, 10) == []
            settled = await dead_letters.list_dead_letters(tx, 10, settled=True)
            assert [letter.state for letter in settled] == ["replayed", "dropped"]
        assert (await world.submit(commands[1])).http_status == 500
