"""A running sync service on a fresh database."""

from collections.abc import AsyncIterator

import pytest
from sync_world import World, running_world

from tessera.storage.database import Database
from tessera.storage.shards import RoomShards


@pytest.fixture
async def world(accounts: Database, shards: RoomShards) -> AsyncIterator[World]:
    async with running_world(accounts, shards) as world:
        yield world
