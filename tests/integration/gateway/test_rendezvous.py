"""Two devices that pass texts to and fro while one logs the other in. Spec: MSC4108."""

from typing import Any

import httpx
import pytest
from gateway_server import Server

from services.gateway import rendezvous
from tessera.http.limits import Rate

PLACE = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
TEXT = {"Content-Type": "text/plain"}


async def ask(server: Server, method: str, url: str, text: str | None = None, **headers: Any) -> httpx.Response:
    path = url if url.startswith("/") else "/" + url.split("/", 3)[3]
    given = {**({} if text is None else TEXT), **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await server.client.request(method, path, content=text, headers=given)


async def opened(server: Server) -> tuple[str, str]:
    """(the place's URL, its ETag)"""
    made = await ask(server, "POST", PLACE, "hello")
    assert made.status_code == 201, made.text
    return made.json()["url"], made.headers["etag"]


async def test_two_devices_talk(server: Server) -> None:
    url, first = await opened(server)
    assert url.startswith("https://test.example" + PLACE)
    seen = await ask(server, "GET", url)
    assert (seen.status_code, seen.text, seen.headers["etag"]) == (200, "hello", first)
    assert seen.headers["content-type"].startswith("text/plain")
    assert "no-store" in seen.headers["cache-control"]
    assert "ETag" in seen.headers["access-control-expose-headers"]
    assert (await ask(server, "GET", url, If_None_Match=first)).status_code == 304
    answered = await ask(server, "PUT", url, "welcome", If_Match=first)
    assert answered.status_code == 202
    second = answered.headers["etag"]
    assert second != first
    assert (await ask(server, "GET", url, If_None_Match=first)).text == "welcome"
    assert (await ask(server, "DELETE", url)).status_code == 204
    for method in ("GET", "DELETE"):
        assert (await ask(server, method, url)).json()["errcode"] == "M_NOT_FOUND"
    assert (await ask(server, "PUT", url, "late", If_Match=second)).json()["errcode"] == "M_NOT_FOUND"


async def test_the_slower_of_two_is_told(server: Server) -> None:
    url, first = await opened(server)
    second = (await ask(server, "PUT", url, "mine", If_Match=first)).headers["etag"]
    for stale in (first, "none", '"' + "9" * 40 + '"'):
        late = await ask(server, "PUT", url, "mine too", If_Match=stale)
        assert (late.status_code, late.headers["etag"]) == (412, second)
        assert late.json()["org.matrix.msc4108.errcode"] == "M_CONCURRENT_WRITE"
    assert (await ask(server, "GET", url)).text == "mine"


async def test_what_is_refused(server: Server) -> None:
    url, etag = await opened(server)
    assert (await ask(server, "PUT", url, "text")).json()["errcode"] == "M_MISSING_PARAM"
    large = await ask(server, "PUT", url, "x" * 5_000, If_Match=etag)
    assert (large.status_code, large.json()["errcode"]) == (413, "M_TOO_LARGE")
    wrong = await server.client.post(PLACE, json={"a": 1})
    assert (wrong.status_code, wrong.json()["errcode"]) == (400, "M_INVALID_PARAM")


async def test_it_ends_after_a_minute(server: Server) -> None:
    url, _ = await opened(server)
    await server.accounts.execute("UPDATE accounts.rendezvous SET expires_at = now()")
    assert (await ask(server, "GET", url)).status_code == 404
    await opened(server)
    assert await server.accounts.fetchval("SELECT count(*) FROM accounts.rendezvous") == 1


async def test_there_are_so_many_only(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "MOST", 2)
    server = make_server()
    for _ in range(2):
        await opened(server)
    full = await ask(server, "POST", PLACE, "hello")
    assert (full.status_code, full.json()["retry_after_ms"]) == (429, 60_000)
    limited = make_server(rates={"rc_login.address": Rate(0.01, 1)})
    assert (await ask(limited, "POST", PLACE, "")).status_code == 429  # full
    assert (await ask(limited, "POST", PLACE, "")).json()["retry_after_ms"] > 60_000
