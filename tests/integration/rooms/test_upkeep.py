"""`verify` finds what is not as it must be, `rebuild` mends projections. DESIGN section 2, invariant 12."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from matrixcore.identifiers import ServerName, UserId
from tessera.clock import FakeClock
from tessera.fanout import LocalFanout
from tessera.rebuilding import Rebuilder
from tessera.storage import dead_letters, user_rooms
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.verifying import Verifier
from tests.fixtures.whole_server import SERVER_NAME, Talk, running_whole_server

NAME = ServerName(SERVER_NAME)


class ImpatientClock(FakeClock):
    """Waiting takes no time."""

    async def sleep(self, seconds: float) -> None:
        self.shift(seconds)


@pytest.fixture
async def talk(dsn: str, tmp_path: Path) -> AsyncIterator[Talk]:
    async with running_whole_server(dsn, tmp_path) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        room_id = await alice.make_room(preset="public_chat", visibility="public", name="Town")
        await bob.post(f"/join/{room_id}")
        event_id = await alice.send(room_id, "hello")
        await alice.put(f"/rooms/{room_id}/redact/{event_id}/r1", {})
        yield Talk(room_id, alice, bob)


async def faults(accounts: Database, shards: RoomShards) -> list[tuple[str, str]]:
    verifier = Verifier(accounts, shards, NAME, ImpatientClock())
    return [(f.check, f.what) async for done in verifier.verify(range(shards.partitions)) for f in done.faults]


async def test_what_a_server_wrote_is_right(talk: Talk, accounts: Database, shards: RoomShards) -> None:
    assert await faults(accounts, shards) == []


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        ("DELETE FROM rooms.records WHERE position = 3", "density"),
        ("UPDATE rooms.records SET room_previous = 1 WHERE position = 5", "chain"),
        ("UPDATE rooms.rooms SET last_position = 2", "chain"),
        ("UPDATE rooms.current_state SET event_id = '$other' WHERE type = 'm.room.name'", "state"),
        (
            "UPDATE rooms.events SET pdu = set_byte(pdu, position('Town' in pdu) - 1, 84 - 1)"
            " WHERE type = 'm.room.name'",
            "hash",
        ),
        ("DELETE FROM accounts.user_rooms WHERE user_id LIKE '@bob:%'", "memberships"),
    ],
)
async def test_damage_is_found(talk: Talk, accounts: Database, shards: RoomShards, damage: str, check: str) -> None:
    await accounts.execute(damage)
    assert check in {found for found, _ in await faults(accounts, shards)}


async def test_room_lists_are_made_anew(talk: Talk, accounts: Database, shards: RoomShards) -> None:
    await accounts.execute("DELETE FROM accounts.user_rooms WHERE user_id = $1", talk.bob.user_id)
    rebuilder = Rebuilder(accounts, shards, LocalFanout(), NAME)
    partition = shards.partition_of(talk.room_id)  # type: ignore[arg-type]
    assert sum([page.changed async for page in rebuilder.rebuild_memberships([partition])]) == 1
    assert sum([page.changed async for page in rebuilder.rebuild_memberships([partition])]) == 0
    async with accounts.reading() as tx:
        assert [row.membership for row in await user_rooms.list_rooms(tx, UserId(talk.bob.user_id))] == ["join"]
    assert talk.room_id in (await talk.bob.sync())["rooms"]["join"]


async def test_the_directory_is_made_anew(talk: Talk, accounts: Database, shards: RoomShards) -> None:
    await accounts.execute("UPDATE accounts.room_directory SET name = 'Village', incarnation = 0, position = 0")
    rebuilder = Rebuilder(accounts, shards, LocalFanout(), NAME)
    async for _ in rebuilder.rebuild_directory(range(shards.partitions)):
        pass
    assert (await talk.bob.get("/publicRooms"))["chunk"][0]["name"] == "Town"


async def test_a_replay_is_asked_for_once(accounts: Database) -> None:
    await accounts.execute(
        "INSERT INTO rooms.dead_letters (command_id, partition, room_id, command, error) VALUES ('c', 1, '!r', '', 'e')"
    )
    async with accounts.reading() as tx:
        assert await dead_letters.request_replay(tx, b"c")
        assert not await dead_letters.request_replay(tx, b"c")
        assert await dead_letters.list_requested(tx, 10) == [b"c"]
        assert [one.state for one in await dead_letters.list_dead_letters(tx, 10)] == ["requested"]
