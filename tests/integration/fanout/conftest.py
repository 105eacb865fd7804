"""Fan-outs to test: the one of one process, and two ends of the one over Redis."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from fanout_listening import Ends

from tessera.clock import SystemClock
from tessera.fanout import LocalFanout
from tessera.fanout.redis import open_fanout
from tessera.ids import IdSource
from tests.fixtures.valkey import ValkeyProcess

_numbers = itertools.count()


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[ValkeyProcess]:
    """A server for tests that do it no harm."""
    server = ValkeyProcess()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def own_valkey() -> Iterator[ValkeyProcess]:
    """A server that the test may do with as it likes."""
    server = ValkeyProcess()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def key_prefix() -> str:
    """Nobody else's."""
    return f"test{next(_numbers)}:"


@pytest.fixture(params=["local", "redis"])
async def ends(request: pytest.FixtureRequest, key_prefix: str) -> AsyncIterator[Ends]:
    """Where is published and where is listened: one process, and then two."""
    if request.param == "local":
        fanout = LocalFanout()
        yield Ends(fanout, fanout)
        return
    server: ValkeyProcess = request.getfixturevalue("shared_valkey")
    async with AsyncExitStack() as stack:
        settings = server.settings(key_prefix)
        here = await stack.enter_async_context(open_fanout(settings, SystemClock(), IdSource()))
        there = await stack.enter_async_context(open_fanout(settings, SystemClock(), IdSource()))
        yield Ends(here, there)
