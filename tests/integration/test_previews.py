"""Previews of links, from servers on this machine that are allowed for the test. Spec: GET /media/preview_url."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from PIL import Image
from starlette.requests import Request

from matrixcore.identifiers import ServerName, UserId
from services.media.dependencies import MediaDeps, MediaLimits
from services.media.disk_store import DiskStore
from services.media.page_fetching import PageFetcher
from services.media.previews import KEPT_FAILURE_MS, KEPT_MS, Previewer, PreviewLimits
from services.media.routes import media_routes
from services.media.thumbnailer import Thumbnailer
from tessera.clock import FakeClock
from tessera.http.app import create_app
from tessera.http.authentication import Requester, access_token_of
from tessera.http.limits import LocalRateLimits
from tessera.ids import IdSource
from tessera.storage.database import Database

ORIGIN = "example.org"
HERE = (ip_network("127.0.0.1/32"),)
PATHS = ("/_matrix/client/v1/media/preview_url", "/_matrix/media/v3/preview_url", "/_matrix/media/r0/preview_url")
Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TokenIsLocalpart:
    async def authenticate(self, request: Request) -> Requester:
        return Requester(UserId(f"@{access_token_of(request)}:{ORIGIN}"), "DEVICE")


class Site:
    """A web server whose pages a test writes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: Mapping[str, str] = {}
        self.pages: dict[str, Page | web.Response] = {}
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.headers = dict(request.headers)
        page = self.pages.get(request.path)
        if page is None:
            return web.Response(status=404)
        return await page(request) if callable(page) else page

    def html(self, path: str, head: str, **options: Any) -> None:
        async def page(_request: web.Request) -> web.Response:
            return web.Response(text=f"<html><head>{head}</head></html>", content_type="text/html", **options)

        self.pages[path] = page


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


class Repository:
    """A media service, and Alice who asks it."""

    def __init__(self, accounts: Database, root: Path) -> None:
        self.accounts = accounts
        self.clock = FakeClock()
        self.store = DiskStore(root)
        self.root = root
        self.deps = MediaDeps(
            ServerName(ORIGIN),
            self.clock,
            IdSource.seeded(1),
            accounts,
            self.store,
            Thumbnailer(self.store, 1_000_000),
            MediaLimits(),
            asyncio.Semaphore(2),
            asyncio.Semaphore(2),
            LocalRateLimits(self.clock, {}),
        )
        self.previewers: list[Previewer] = []
        self.app = create_app(
            routes=media_routes(), state={"authenticator": TokenIsLocalpart(), "media": self.deps}, ids=self.deps.ids
        )
        self.alice = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app),
            base_url="http://media.test",
            headers={"authorization": "Bearer alice"},
            timeout=30,
        )

    def enable(self, *, allowed: Any = HERE, **options: Any) -> None:
        fetcher = PageFetcher(
            blocked=(), allowed=allowed, forbidden=options.get("forbidden", ()), languages=("de", "en"), connections=8
        )
        previewer = Previewer(fetcher, PreviewLimits(options.get("max_image_bytes", 100_000)))
        self.previewers.append(previewer)
        self.app.state.media = replace(self.deps, previewer=previewer)

    async def preview(self, url: str, path: str = PATHS[0], **query: Any) -> httpx.Response:
        return await self.alice.get(path, params={"url": url, **query})

    async def close(self) -> None:
        await self.alice.aclose()
        for previewer in self.previewers:
            await previewer.close()
        self.deps.close()


@pytest.fixture
async def repository(accounts: Database, tmp_path: Path) -> AsyncIterator[Repository]:
    repository = Repository(accounts, tmp_path)
    yield repository
    await repository.close()


def png(width: int = 40, height: int = 30) -> bytes:
    out = BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


def serve(content: bytes, content_type: str, **headers: str) -> Page:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(body=content, headers={"Content-Type": content_type, **headers})

    return page


def error_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["errcode"]


@pytest.mark.parametrize("path", PATHS)
async def test_there_is_no_endpoint_unless_the_operator_wants_it(repository: Repository, path: str) -> None:
    assert error_of(await repository.preview("http://127.0.0.1/", path)) == (404, "M_UNRECOGNIZED")


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_with_an_image(repository: Repository, site: Site, path: str) -> None:
    repository.enable()
    site.html("/post", '<meta property="og:title" content="Post"><meta property="og:image" content="/a.png">')
    site.pages["/a.png"] = serve(png(), "image/png")
    preview = (await repository.preview(f"{site.url}/post", path)).json()
    uri = preview.pop("og:image")
    assert preview == {
        "og:title": "Post",
        "og:image:type": "image/png",
        "og:image:width": 40,
        "og:image:height": 30,
        "matrix:image:size": len(png()),
    }
    media_id = uri.removeprefix(f"mxc://{ORIGIN}/")
    content = await repository.alice.get(f"/_matrix/client/v1/media/download/{ORIGIN}/{media_id}")
    assert content.content == png()
    assert site.headers["Accept-Language"] == "de, en"
    assert "Cookie" not in site.headers
    assert "Authorization" not in site.headers


async def test_an_image_and_another_file(repository: Repository, site: Site) -> None:
    repository.enable()
    site.pages["/a.png"] = serve(png(8, 4), "image/png")
    site.pages["/a.pdf"] = serve(b"%PDF", "application/pdf")
    image = (await repository.preview(f"{site.url}/a.png")).json()
    assert (image["og:image:width"], image["og:image:height"]) == (8, 4)
    assert (await repository.preview(f"{site.url}/a.pdf")).json() == {}


async def test_images_that_are_none_or_too_large_are_left_out(repository: Repository, site: Site) -> None:
    repository.enable(max_image_bytes=1_000)
    for name, content in (("/none", b"no image"), ("/large", png() + b"\0" * 1_000)):
        site.pages[f"{name}.png"] = serve(content, "image/png")
        site.html(name, f'<title>T</title><meta property="og:image" content="{name}.png">')
        assert (await repository.preview(site.url + name)).json() == {"og:title": "T"}
    site.html("/gone", '<title>T</title><meta property="og:image" content="/404.png">')
    assert (await repository.preview(f"{site.url}/gone")).json() == {"og:title": "T"}
    assert not [path for path in repository.root.rglob("*") if path.is_file()]


async def test_answers_are_kept_and_asked_for_once(repository: Repository, site: Site) -> None:
    repository.enable()
    site.html("/a", "<title>One</title>")
    replies = await asyncio.gather(*(repository.preview(f"{site.url}/a", ts=5) for _ in range(5)))
    assert {reply.json()["og:title"] for reply in replies} == {"One"}
    site.html("/a", "<title>Two</title>")
    assert (await repository.preview(f"{site.url}/a")).json() == {"og:title": "One"}
    assert site.asked == ["/a"]
    repository.clock.shift(KEPT_MS / 1000 + 1)
    assert (await repository.preview(f"{site.url}/a")).json() == {"og:title": "Two"}


async def test_failures_are_kept_for_a_while_too(repository: Repository, site: Site) -> None:
    repository.enable()
    for _ in range(2):
        assert error_of(await repository.preview(f"{site.url}/none")) == (502, "M_UNKNOWN")
    assert site.asked == ["/none"]
    site.html("/none", "<title>Here</title>")
    repository.clock.shift(KEPT_FAILURE_MS / 1000 + 1)
    assert (await repository.preview(f"{site.url}/none")).json() == {"og:title": "Here"}


async def test_the_inner_network_is_out_of_reach(repository: Repository, site: Site) -> None:
    """By address, by name, by redirect and by the address of an image."""
    repository.enable(allowed=())
    site.html("/a", "<title>Secret</title>")
    port = site.port
    for host in (
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
    ):
        assert error_of(await repository.preview(f"http://{host}:{port}/a")) == (502, "M_UNKNOWN"), host
    assert site.asked == []


async def test_each_redirect_is_checked_anew(repository: Repository, site: Site) -> None:
    repository.enable()
    site.pages["/there"] = serve(b"", "text/html", Location="/a")
    site.html("/a", "<title>A</title>")

    def redirect(location: str) -> Page:
        async def page(_request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": location})

        return page

    site.pages["/r"] = redirect("/a")
    assert (await repository.preview(f"{site.url}/r")).json() == {"og:title": "A"}
    for number, location in enumerate(
        (f"http://[::1]:{site.port}/a", "http://127.0.0.2/", "file:///etc/passwd", "http://[", f"{site.url}/self9")
    ):
        site.pages[f"/r{number}"] = redirect(location)
        assert error_of(await repository.preview(f"{site.url}/r{number}")) == (502, "M_UNKNOWN"), location
    site.pages["/loop"] = redirect("/loop")
    assert error_of(await repository.preview(f"{site.url}/loop")) == (502, "M_UNKNOWN")
    assert site.asked.count("/loop") == 6
    site.html("/inner", f'<title>T</title><meta property="og:image" content="http://127.0.0.2:{site.port}/a.png">')
    assert (await repository.preview(f"{site.url}/inner")).json() == {"og:title": "T"}


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "127.0.0.1",
        "http://",
        "http://a:b:c/",
        "http://x/\n",
        "http://x/" + "y" * 5000,
    ],
)
async def test_what_is_no_url_of_the_web(repository: Repository, url: str) -> None:
    repository.enable()
    assert error_of(await repository.preview(url)) == (502, "M_UNKNOWN")


async def test_parameters(repository: Repository, site: Site) -> None:
    repository.enable(forbidden=[{"path": "/private*"}, {"scheme": "http", "query": "^secret"}])
    assert error_of(await repository.alice.get(PATHS[0])) == (400, "M_MISSING_PARAM")
    assert error_of(await repository.preview("http://x/", ts="soon")) == (400, "M_INVALID_PARAM")
    for forbidden in ("/Private/a", "/?secret=1"):
        assert error_of(await repository.preview(site.url + forbidden)) == (403, "M_FORBIDDEN")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(repository.app), base_url="http://media.test") as nobody:
        assert error_of(await nobody.get(PATHS[0], params={"url": site.url})) == (401, "M_MISSING_TOKEN")


async def test_packed_answers_are_unpacked_within_bounds(repository: Repository, site: Site) -> None:
    repository.enable()
    page = b"<title>Packed</title>" + b" " * 300_000
    site.pages["/gzip"] = serve(gzip.compress(page), "text/html", **{"Content-Encoding": "gzip"})
    site.pages["/deflate"] = serve(zlib.compress(page), "text/html", **{"Content-Encoding": "deflate"})
    for name in ("/gzip", "/deflate"):
        assert (await repository.preview(site.url + name)).json() == {"og:title": "Packed"}
    bomb = gzip.compress(b"<title>Bomb</title>" + b" " * 50_000_000)
    site.pages["/bomb"] = serve(bomb, "text/html", **{"Content-Encoding": "gzip"})
    assert (await repository.preview(f"{site.url}/bomb")).json() == {"og:title": "Bomb"}
    for name, packing in (("/br", "br"), ("/broken", "gzip")):
        site.pages[name] = serve(b"not packed", "text/html", **{"Content-Encoding": packing})
        assert error_of(await repository.preview(site.url + name)) == (502, "M_UNKNOWN")


async def test_an_endless_page_ends(repository: Repository, site: Site) -> None:
    repository.enable()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html; charset=utf-8"})
        await response.prepare(request)
        await response.write(b"<title>Endless</title>")
        try:
            while True:
                await response.write(b"<p>and so on</p>" * 1000)
        except (ConnectionError, asyncio.CancelledError):
            return response

    site.pages["/endless"] = endless
    assert (await repository.preview(f"{site.url}/endless")).json()["og:title"] == "Endless"
