"""One of two room shards is away, in a PostgreSQL of its own: rooms of the other go on (DESIGN section 11)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sync_world import ALICE, BOB, SyncClient, World, running_world

from matrixcore.identifiers import RoomId
from tessera.commands import partition_of
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.database import Database
from tessera.storage.migrations import Tree, migrate
from tessera.storage.shards import RoomShards
from tessera.sync_token import decode_token
from tests.conftest import FORGETFUL

pytestmark = pytest.mark.timeout(120)
PARTITIONS = 2
LIVING, OTHER = 0, 1  # partitions and shards alike


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """The server that will be stopped."""
    server = EmbeddedPostgres(tmp_path / "other", settings=FORGETFUL)
    await server.start()
    await migrate(server.dsn(), Tree.ROOMS)
    yield server
    await server.stop()


@pytest.fixture
async def world(accounts: Database, other: EmbeddedPostgres) -> AsyncIterator[World]:
    """Two sync services on two shards."""
    database = await Database.connect(other.dsn())
    shards = RoomShards({"living": accounts, "other": database}, {LIVING: "living", OTHER: "other"}, PARTITIONS)
    async with running_world(accounts, shards, services=2) as made:
        yield made
    await database.close()


async def rooms_of_both(world: World) -> list[RoomId]:
    """A room of Alice's and Bob's in each shard."""
    found: dict[int, RoomId] = {}
    while len(found) < PARTITIONS:
        room_id = await world.room(ALICE, BOB)
        found.setdefault(partition_of(room_id, PARTITIONS), room_id)
    return [found[LIVING], found[OTHER]]


def heard(body: dict[str, Any], room_id: RoomId) -> list[str]:
    """The texts of a room in an answer."""
    room = body.get("rooms", {}).get("join", {}).get(room_id, {"timeline": {"events": []}})
    return [event["content"].get("body", "") for event in room["timeline"]["events"]]


async def until_heard(client: SyncClient, room_id: RoomId, text: str) -> None:
    """Sync until a room says something; while it does not, anything may."""
    async with asyncio.timeout(30):
        while text not in heard(await client.sync(timeout=20_000), room_id):
            pass


async def test_rooms_of_the_other_shard_go_on(world: World, other: EmbeddedPostgres) -> None:
    living, away = await rooms_of_both(world)
    alice, bob = world.client(ALICE), world.client(BOB)
    for client in (alice, bob):
        await client.sync()
    elsewhere = world.client(ALICE, service=1)
    await elsewhere.sync()
    behind = alice.since
    await world.say(away, BOB, "before")
    await until_heard(alice, away, "before")
    parked = asyncio.create_task(until_heard(alice, living, "while it is away"))
    await asyncio.sleep(0)
    await other.stop()

    # From memory, parked before; from PostgreSQL, with a filter that the memory does not know of.
    known = decode_token(alice.since or "").positions[OTHER]
    await world.say(living, BOB, "while it is away")
    await parked
    assert decode_token(alice.since or "").positions[OTHER] == known
    filtered = {"room": {"timeline": {"types": ["m.room.message"], "contains_url": False}, "state": {"types": []}}}
    await world.say(living, BOB, "once more")
    body = await bob.sync(filter=filtered)
    assert heard(body, living) == ["while it is away", "once more"]
    # With doubts about every head, as after Redis was away.
    for service in world.services:
        service.instance.feed.on_reset()
    await world.say(living, ALICE, "in doubt")
    await until_heard(elsewhere, living, "in doubt")
    assert decode_token(elsewhere.since or "").positions[OTHER] < known
    # By a process that has nothing of the user in memory: from what a client knows, with news and without any.
    newcomer = world.client(BOB, service=1)
    newcomer.since = bob.since
    body = await newcomer.sync(timeout=20_000)
    assert heard(body, living) == ["in doubt"]
    assert decode_token(newcomer.since or "").positions[OTHER] == decode_token(bob.since or "").positions[OTHER]
    assert "rooms" not in await newcomer.sync(timeout=50)
    waiting = asyncio.create_task(until_heard(newcomer, living, "to a newcomer"))
    await asyncio.sleep(0)
    await world.say(living, ALICE, "to a newcomer")
    await waiting
    # What cannot be said without the shard is not said at all.
    assert (await bob.request()).status_code == 503
    assert (await bob.request(since=bob.since, full_state=True)).status_code == 503

    await other.start()
    async with asyncio.timeout(30):
        while True:
            try:
                await world.say(away, BOB, "back again")
                break
            except AssertionError:
                continue
    await until_heard(alice, away, "back again")
    await until_heard(bob, away, "back again")
    async with asyncio.timeout(30):
        while (texts := heard(await elsewhere.sync(timeout=200), away)) != ["before", "back again"]:
            assert not texts
    reply = await alice.request(since=behind)
    assert heard(reply.json(), away) == ["before", "back again"]
