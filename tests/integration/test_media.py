"""The content repository over HTTP, on the disk and PostgreSQL. Spec: C-S API §Content repository."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.requests import Request

from matrixcore.identifiers import ServerName, UserId
from services.media.dependencies import MediaDeps, MediaLimits
from services.media.disk_store import DiskStore
from services.media.routes import media_routes
from services.media.thumbnailer import Thumbnailer
from tessera.clock import FakeClock
from tessera.http.app import create_app
from tessera.http.authentication import Requester, access_token_of
from tessera.http.limits import LocalRateLimits
from tessera.ids import IdSource
from tessera.storage.database import Database

ORIGIN = "example.org"
V1, OLD = "/_matrix/client/v1/media", "/_matrix/media/v3"
LIMITS = MediaLimits(max_upload_bytes=100_000, max_image_pixels=250_000, max_pending_uploads=2)


class TokenIsLocalpart:
    """Access tokens that say whose they are."""

    async def authenticate(self, request: Request) -> Requester:
        return Requester(UserId(f"@{access_token_of(request)}:{ORIGIN}"), "DEVICE")


class Repository:
    """A media service with clients of Alice, of Bob and without a token."""

    def __init__(self, accounts: Database, root: Path) -> None:
        self.root = root
        self.clock = FakeClock()
        store = DiskStore(root)
        self.deps = MediaDeps(
            ServerName(ORIGIN),
            self.clock,
            IdSource.seeded(1),
            accounts,
            store,
            Thumbnailer(store, LIMITS.max_image_pixels),
            LIMITS,
            asyncio.Semaphore(2),
            asyncio.Semaphore(2),
            LocalRateLimits(self.clock, {}),
        )
        self.app = create_app(
            routes=media_routes(),
            state={"authenticator": TokenIsLocalpart(), "media": self.deps},
            ids=self.deps.ids,
        )
        self.alice, self.bob, self.nobody = self.client("alice"), self.client("bob"), self.client(None)

    def client(self, token: str | None) -> httpx.AsyncClient:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://media.test", headers=headers)

    def freeze(self, *, authenticated: bool) -> None:
        """Switch enable_authenticated_media."""
        self.app.state.media = replace(self.deps, limits=replace(LIMITS, authenticated=authenticated))

    async def upload(self, content: bytes, content_type: str = "image/png", filename: str | None = None) -> str:
        query = {} if filename is None else {"filename": filename}
        reply = await self.alice.post(
            f"{OLD}/upload", content=content, params=query, headers={"content-type": content_type}
        )
        assert reply.status_code == 200, reply.text
        return media_id_of(reply)

    async def reserve(self) -> str:
        return media_id_of(await self.alice.post("/_matrix/media/v1/create"))

    def files(self) -> list[str]:
        return [path.name for path in self.root.rglob("*") if path.is_file()]


def media_id_of(reply: httpx.Response) -> str:
    prefix, media_id = reply.json()["content_uri"].rsplit("/", 1)
    assert prefix == f"mxc://{ORIGIN}"
    return str(media_id)


def error_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["errcode"]


def png(width: int, height: int) -> bytes:
    out = BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
async def repository(accounts: Database, tmp_path: Path) -> AsyncIterator[Repository]:
    repository = Repository(accounts, tmp_path)
    yield repository
    for client in (repository.alice, repository.bob, repository.nobody):
        await client.aclose()
    repository.deps.close()


async def test_what_was_uploaded_comes_back(repository: Repository) -> None:
    content = bytes(range(256)) * 300
    media_id = await repository.upload(content, "image/png", "a picture.png")
    reply = await repository.bob.get(f"{V1}/download/{ORIGIN}/{media_id}")
    assert (reply.status_code, reply.content) == (200, content)
    assert reply.headers["content-type"] == "image/png"
    assert reply.headers["content-disposition"] == 'inline; filename="a picture.png"'
    assert reply.headers["content-length"] == str(len(content))
    assert reply.headers["content-security-policy"].startswith("sandbox;")
    assert reply.headers["cross-origin-resource-policy"] == "cross-origin"
    renamed = await repository.bob.get(f"{V1}/download/{ORIGIN}/{media_id}/other.png")
    assert renamed.headers["content-disposition"] == 'inline; filename="other.png"'
    head = await repository.bob.head(f"{V1}/download/{ORIGIN}/{media_id}")
    assert (head.status_code, head.content) == (200, b"")


async def test_what_browsers_execute_is_an_attachment(repository: Repository) -> None:
    media_id = await repository.upload(b"<script>", "text/html", "x.html")
    reply = await repository.bob.get(f"{V1}/download/{ORIGIN}/{media_id}")
    assert reply.headers["content-disposition"] == 'attachment; filename="x.html"'


async def test_access_tokens_and_the_old_paths(repository: Repository) -> None:
    media_id = await repository.upload(b"new")
    new, old = f"{V1}/download/{ORIGIN}/{media_id}", f"{OLD}/download/{ORIGIN}/{media_id}"
    assert error_of(await repository.nobody.get(new)) == (401, "M_MISSING_TOKEN")
    assert error_of(await repository.nobody.get(old)) == (404, "M_NOT_FOUND")
    assert error_of(await repository.nobody.post(f"{OLD}/upload", content=b"x")) == (401, "M_MISSING_TOKEN")
    repository.freeze(authenticated=False)
    assert (await repository.nobody.get(old)).content == b"new"
    before = await repository.upload(b"before the freeze")
    repository.freeze(authenticated=True)
    for prefix in (OLD, "/_matrix/media/r0", "/_matrix/media/v1"):
        reply = await repository.nobody.get(f"{prefix}/download/{ORIGIN}/{before}")
        assert reply.content == b"before the freeze"
    assert (await repository.bob.get(f"{V1}/download/{ORIGIN}/{before}")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        f"{ORIGIN}/unknown",
        f"{ORIGIN}/..%2F..%2Fetc%2Fpasswd",
        f"{ORIGIN}/a.b",
        "far.org/abc",
        "..%2F../x",
    ],
)
async def test_what_is_no_media_of_ours_is_not_found(repository: Repository, path: str) -> None:
    reply = await repository.bob.get(f"{V1}/download/{path}")
    assert reply.status_code == 404


async def test_the_limit_holds_with_and_without_a_declared_length(repository: Repository) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(50_000)

    for content in (bytes(LIMITS.max_upload_bytes + 1), pieces()):
        reply = await repository.alice.post(f"{OLD}/upload", content=content)
        assert error_of(reply) == (413, "M_TOO_LARGE")
    assert repository.files() == []
    await repository.upload(bytes(LIMITS.max_upload_bytes))
    for path in (f"{OLD}/config", f"{V1}/config"):
        assert (await repository.alice.get(path)).json() == {"m.upload.size": LIMITS.max_upload_bytes}


async def test_a_reserved_id_gets_its_content_once(repository: Repository) -> None:
    media_id = await repository.reserve()
    path = f"{OLD}/upload/{ORIGIN}/{media_id}"
    assert error_of(await repository.bob.put(path, content=b"x")) == (403, "M_FORBIDDEN")
    replies = await asyncio.gather(*(repository.alice.put(path, content=bytes([n])) for n in (1, 2)))
    assert sorted(reply.status_code for reply in replies) == [200, 409]
    winner = 1 if replies[0].status_code == 200 else 2
    assert error_of(replies[2 - winner]) == (409, "M_CANNOT_OVERWRITE_MEDIA")
    reply = await repository.bob.get(f"{V1}/download/{ORIGIN}/{media_id}")
    assert reply.content == bytes([winner])
    assert reply.headers["content-type"] == "application/octet-stream"
    assert len(repository.files()) == 1, "the loser's bytes are gone"
    unknown = await repository.alice.put(f"{OLD}/upload/{ORIGIN}/never", content=b"x")
    assert error_of(unknown) == (404, "M_NOT_FOUND")


async def test_reserved_ids_are_few_and_expire(repository: Repository) -> None:
    reply = await repository.alice.post("/_matrix/media/v1/create")
    assert reply.json()["unused_expires_at"] == repository.clock.now_ms() + LIMITS.unused_lifetime_ms
    first = media_id_of(reply)
    await repository.reserve()
    assert error_of(await repository.alice.post("/_matrix/media/v1/create")) == (429, "M_LIMIT_EXCEEDED")
    repository.clock.shift(LIMITS.unused_lifetime_ms / 1000 + 1)
    assert error_of(await repository.bob.get(f"{V1}/download/{ORIGIN}/{first}")) == (404, "M_NOT_FOUND")
    late = await repository.alice.put(f"{OLD}/upload/{ORIGIN}/{first}", content=b"x")
    assert error_of(late) == (404, "M_NOT_FOUND")
    await repository.reserve()


async def test_a_download_waits_for_the_upload(repository: Repository) -> None:
    media_id = await repository.reserve()
    path = f"{V1}/download/{ORIGIN}/{media_id}"
    assert error_of(await repository.bob.get(path, params={"timeout_ms": 0})) == (504, "M_NOT_YET_UPLOADED")
    waiting = asyncio.create_task(repository.bob.get(path, params={"timeout_ms": 10_000}))
    await repository.clock.advance(0.1)
    await repository.alice.put(f"{OLD}/upload/{ORIGIN}/{media_id}", content=b"at last")
    while not waiting.done():
        await repository.clock.advance(0.1)
    assert (await waiting).content == b"at last"


async def test_thumbnails(repository: Repository) -> None:
    media_id = await repository.upload(png(400, 200))
    path = f"{V1}/thumbnail/{ORIGIN}/{media_id}"
    query = {"width": 90, "height": 90, "method": "crop"}
    replies = await asyncio.gather(*(repository.bob.get(path, params=query) for _ in range(3)))
    replies.append(await repository.bob.get(path, params=query))
    for reply in replies:
        assert reply.headers["content-type"] == "image/jpeg"
        assert reply.headers["content-disposition"] == 'inline; filename="thumbnail.jpeg"'
        assert Image.open(BytesIO(reply.content)).size == (96, 96)
    assert "96x96-crop" in repository.files()
    whole = await repository.bob.get(path, params={"width": 800, "height": 600})
    assert whole.content == png(400, 200), "what is smaller than the request is answered as it is"
    assert error_of(await repository.nobody.get(path, params=query)) == (401, "M_MISSING_TOKEN")
    old = await repository.nobody.get(f"{OLD}/thumbnail/{ORIGIN}/{media_id}", params=query)
    assert error_of(old) == (404, "M_NOT_FOUND")


async def test_thumbnails_that_cannot_be(repository: Repository) -> None:
    image, text = await repository.upload(png(600, 600)), await repository.upload(b"no image", "text/plain")
    query: dict[str, str | int] = {"width": 32, "height": 32}
    too_large = await repository.bob.get(f"{V1}/thumbnail/{ORIGIN}/{image}", params=query)
    assert error_of(too_large) == (413, "M_TOO_LARGE")
    no_image = await repository.bob.get(f"{V1}/thumbnail/{ORIGIN}/{text}", params=query)
    assert error_of(no_image) == (400, "M_UNKNOWN")
    for change in ({"width": 0}, {"height": "x"}, {"method": "stretch"}, {"animated": "maybe"}, {"width": "9" * 20}):
        reply = await repository.bob.get(f"{V1}/thumbnail/{ORIGIN}/{text}", params=query | change)
        assert error_of(reply) == (400, "M_INVALID_PARAM")
    missing = await repository.bob.get(f"{V1}/thumbnail/{ORIGIN}/{text}", params={"width": 3})
    assert error_of(missing) == (400, "M_MISSING_PARAM")
