"""What a process believes of the placement, and for how long (DESIGN section 2, invariant 8)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tessera.clock import FakeClock
from tessera.placement_following import LOOK_SECONDS, MOVING_LOOK_SECONDS, PlacementFollower
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.shards import MOVING_TRUST_SECONDS, TRUST_SECONDS, RoomShards


class Accounts:
    """The account store's two tables, as long as it is there."""

    def __init__(self) -> None:
        self.placement = {0: "one", 1: "two"}
        self.moving: set[int] = set()
        self.is_away = False
        self.looks = 0

    @asynccontextmanager
    async def reading(self) -> AsyncIterator["Accounts"]:
        if self.is_away:
            raise DatabaseUnavailable("away")
        yield self

    async def fetch(self, query: str, *_args: Any) -> list[Any]:
        if "partition_moves" in query:
            self.looks += 1
            return [(partition,) for partition in self.moving]
        return list(self.placement.items())


@pytest.fixture
def accounts() -> Accounts:
    return Accounts()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def shards() -> RoomShards:
    databases: Any = {"one": "database one", "two": "database two"}
    return RoomShards(databases, {0: "one", 1: "two"}, 2)


@pytest.fixture
async def follower(accounts: Any, shards: RoomShards, clock: FakeClock) -> AsyncIterator[PlacementFollower]:
    following = PlacementFollower(accounts, shards, clock)
    running = asyncio.create_task(following.run())
    await following.has_looked.wait()
    yield following
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_move_is_followed(
    accounts: Accounts, shards: RoomShards, clock: FakeClock, follower: PlacementFollower
) -> None:
    assert shards.shard_of(0) == "one"
    accounts.moving = {0}
    await clock.advance(LOOK_SECONDS)
    assert shards.moving == {0}
    accounts.placement[0] = "two"
    await clock.advance(MOVING_LOOK_SECONDS)
    assert (shards.shard_of(0), shards.partitions_of("two")) == ("two", [0, 1])


async def test_an_old_placement_is_not_read_by(
    accounts: Accounts, shards: RoomShards, clock: FakeClock, follower: PlacementFollower
) -> None:
    accounts.moving = {0}
    await clock.advance(LOOK_SECONDS)
    accounts.is_away = True
    await clock.advance(MOVING_TRUST_SECONDS + MOVING_LOOK_SECONDS)
    with pytest.raises(DatabaseUnavailable):
        shards.of_partition(0)
    assert shards.shard_of(1) == "two"
    await clock.advance(TRUST_SECONDS)
    with pytest.raises(DatabaseUnavailable):
        shards.shard_of(1)
    # What is fenced by the partition's own row goes on by what was last known.
    assert (shards.believed_shard_of(1), shards.partitions_of("one")) == ("two", [0])
    accounts.is_away = False
    await clock.advance(LOOK_SECONDS)
    assert (shards.shard_of(0), shards.shard_of(1)) == ("one", "two")


async def test_a_shard_that_the_configuration_does_not_name_is_not_guessed(
    accounts: Accounts, shards: RoomShards, clock: FakeClock, follower: PlacementFollower
) -> None:
    accounts.placement[0] = "three"
    await clock.advance(TRUST_SECONDS + LOOK_SECONDS)
    with pytest.raises(DatabaseUnavailable):
        shards.shard_of(0)


async def test_looks_are_more_frequent_while_anything_moves(
    accounts: Accounts, clock: FakeClock, follower: PlacementFollower
) -> None:
    await clock.advance(10 * LOOK_SECONDS)
    quiet_looks = accounts.looks
    accounts.moving = {1}
    await clock.advance(10 * LOOK_SECONDS)
    assert accounts.looks - quiet_looks > 3 * quiet_looks
