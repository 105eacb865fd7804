"""A client on sliding sync through matrix-js-sdk (Node); the walk itself is js/sliding.mjs. Spec: MSC4186."""

import pytest

from tests.fixtures.server_process import ServerProcess
from tests.interop.sdk_script import run_with_kills

pytestmark = pytest.mark.timeout(300)


async def test_a_client_on_sliding_sync_survives_a_killed_server(server: ServerProcess, unique: str) -> None:
    """The script's assertions hold; after a SIGKILL the client goes on where it was."""
    result = await run_with_kills("sliding.mjs", server, unique)
    assert result["messages"] == 31
    assert "M_UNKNOWN_POS" not in result["errors"]
