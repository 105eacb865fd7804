"""A keyring with an account store of its own, and peers that a test adds."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from key_world import KeyWorld

from tessera.clock import FakeClock
from tessera.storage.database import Database
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.peer_world import asking_world


@pytest.fixture
async def keys(accounts: Database, peer_authority: PeerAuthority) -> AsyncIterator[KeyWorld]:
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(asking_world(peer_authority, clock=clock))
        yield KeyWorld(world, accounts, clock, peer_authority, stack)
