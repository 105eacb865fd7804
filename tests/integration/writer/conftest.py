"""Worlds for the tests of the room writer: on one shard, and on one and two."""

from collections.abc import AsyncIterator

import pytest
from writer_world import World, make_world

from tessera.storage.shards import RoomShards


@pytest.fixture
async def world(shards: RoomShards) -> AsyncIterator[World]:
    """One shard, no writer yet."""
    async with make_world(shards) as made:
        yield made


@pytest.fixture
async def any_world(any_shards: RoomShards) -> AsyncIterator[World]:
    """One shard, and then two; no writer yet."""
    async with make_world(any_shards) as made:
        yield made
