"""A running server to be killed."""

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.server_process import ServerProcess


@pytest.fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """A server of this test alone."""
    process = ServerProcess(tmp_path_factory.mktemp("server"))
    await process.start()
    yield process
    await process.stop()
