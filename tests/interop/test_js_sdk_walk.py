"""Three people walk through what matrix-js-sdk (Node) offers; the walk itself is js/features.mjs."""

import pytest

from tests.fixtures.server_process import ServerProcess
from tests.interop.sdk_script import run_with_kills

pytestmark = pytest.mark.timeout(300)


async def test_everything_is_found_and_survives_a_killed_server(server: ServerProcess, unique: str) -> None:
    """The script's assertions hold, with a SIGKILL of the server in the middle."""
    result = await run_with_kills("features.mjs", server, unique)
    assert {"spaces", "threads", "search", "knock", "upgrade", "notifications"} <= set(result["steps"])
