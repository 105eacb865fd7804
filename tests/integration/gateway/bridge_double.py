"""An application service for tests of the gateway: what it is asked, and what it answers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

HS_TOKEN = "hs-token-of-irc"


@dataclass
class BridgeDouble:
    """Answers by path; an answer may be a function that is called when it is asked for."""

    asked: list[str] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    missing: str = "M_NOT_FOUND"  # the error code of a 404
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        path = unquote(request.rel_url.raw_path) + (f"?{raw}" if (raw := request.rel_url.raw_query_string) else "")
        self.asked.append(path)
        assert request.headers["Authorization"] == f"Bearer {HS_TOKEN}"
        if self.status != 200:
            return web.json_response({"errcode": "M_UNKNOWN"}, status=self.status)
        if path not in self.answers:
            return web.json_response({"errcode": self.missing}, status=404)
        answer = self.answers[path]
        if callable(answer):
            made: Callable[[], Awaitable[Any]] = answer
            answer = await made()
        return web.json_response(answer)

    def write_registration(self, folder: Path, **more: Any) -> Path:
        """Its registration file."""
        registration = {
            "id": "irc",
            "url": self.url,
            "as_token": "as-token-of-irc",
            "hs_token": HS_TOKEN,
            "sender_localpart": "_irc_bot",
            "namespaces": {
                "users": [{"exclusive": True, "regex": "@_irc_.*"}],
                "aliases": [{"exclusive": True, "regex": "#_irc_.*"}],
            },
            **more,
        }
        path = folder / "irc.yaml"
        path.write_text(yaml.safe_dump(registration))
        return path


@asynccontextmanager
async def running_bridge() -> AsyncIterator[BridgeDouble]:
    """One that listens on the loopback."""
    double = BridgeDouble()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", double.handle)
    server = TestServer(app)
    await server.start_server()
    double.url = str(server.make_url("/")).rstrip("/")
    yield double
    await server.close()
