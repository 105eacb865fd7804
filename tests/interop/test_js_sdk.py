"""Two people talk through matrix-js-sdk (Node); the conversation itself is js/conversation.mjs."""

import pytest

from tests.fixtures.server_process import ServerProcess
from tests.interop.sdk_script import run_with_kills

pytestmark = pytest.mark.timeout(300)


async def test_a_conversation_survives_a_killed_server(server: ServerProcess, unique: str) -> None:
    """The script's assertions hold, with a SIGKILL of the server in the middle."""
    result = await run_with_kills("conversation.mjs", server, unique)
    assert result["messages"] == 200
