"""A running server for clients that know nothing of us."""

import secrets
from collections.abc import AsyncIterator

import pytest

from tests.fixtures.server_process import ServerProcess


@pytest.fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """A server of this test alone: it may be killed."""
    process = ServerProcess(tmp_path_factory.mktemp("server"))
    await process.start()
    yield process
    await process.stop()


@pytest.fixture
def unique() -> str:
    """A suffix for user names."""
    return secrets.token_hex(4)
