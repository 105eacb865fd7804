"""A bot and a person walk through what matrix-bot-sdk (Node) offers; the walk itself is js/bot.mjs."""

import asyncio
import json

import pytest

from tests.fixtures.server_process import ServerProcess
from tests.interop.bot_sdk_bridge import JS, NODE

pytestmark = pytest.mark.timeout(240)


async def test_a_bot_finds_everything(server: ServerProcess, unique: str) -> None:
    """The script's assertions hold, with one process and with a cluster."""
    assert (JS / "node_modules" / "matrix-bot-sdk").exists(), "`make test-interop` installs matrix-bot-sdk"
    script = await asyncio.create_subprocess_exec(
        *(NODE, JS / "bot.mjs", server.base_url, unique), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await script.communicate()
    assert script.returncode == 0, errors.decode()[-4000:]
    last = output.decode().splitlines()[-1]
    assert json.loads(last.removeprefix("DONE "))["events"] > 20
