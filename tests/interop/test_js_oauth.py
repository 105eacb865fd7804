"""A client that logs in by the OAuth 2.0 API through matrix-js-sdk (Node); the script is js/oauth.mjs."""

from pathlib import Path

import pytest

from tests.fixtures.server_process import ServerProcess
from tests.interop.sdk_script import run_with_kills

pytestmark = pytest.mark.timeout(300)


async def test_a_client_logs_in_by_oauth_across_killed_servers(tmp_path: Path, unique: str) -> None:
    """The script's assertions hold, with a SIGKILL between any two steps of a login and before a refresh."""
    own = {"data_dir": str(tmp_path / "data"), "oauth": {"enabled": True}}
    server = ServerProcess(tmp_path, tessera=own, refreshable_access_token_lifetime="5s")
    await server.start()
    try:
        result = await run_with_kills("oauth.mjs", server, unique)
    finally:
        await server.stop()
    assert result == {"refreshed": 1}
