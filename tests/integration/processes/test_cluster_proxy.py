"""The proxy in front of a small cluster: what it does when a process does not take a request."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from services.cluster.plan import free_ports
from services.cluster.proxy import ATTEMPTS, Backend, Proxy, make_server, open_session, stick
from tessera.config.services import ServiceName

SYNC = "/_matrix/client/v3/sync"
SEND = "/_matrix/client/v3/rooms/!a:b/send/m.room.message/1"


@dataclass
class Process:
    """A process behind the proxy, which says who it is and what it got."""

    name: str
    service: ServiceName
    url: str = ""
    is_ready: bool = True
    mode: str = "answer"
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    parked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        self.requests.append((request.method, request.raw_path, body))
        if self.mode == "drop":
            assert request.transport is not None
            request.transport.abort()
        if self.mode == "park":
            self.parked.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        if self.mode == "large":
            answer = web.StreamResponse()
            await answer.prepare(request)
            for _ in range(32):
                await answer.write(b"x" * 65_536)
            return answer
        headers = {name: request.headers.get(name, "") for name in ("Host", "X-Forwarded-For", "Accept-Encoding")}
        return web.json_response({"name": self.name, "headers": headers}, headers={"X-Twice": "1"})

    def suspect(self) -> None:
        self.is_ready = False


@dataclass
class Front:
    """The proxy, and who is behind it."""

    url: str
    http: aiohttp.ClientSession
    processes: dict[str, Process]

    async def ask(self, method: str, path: str, **options: object) -> tuple[int, dict[str, object]]:
        async with self.http.request(method, self.url + path, **options) as answer:  # type: ignore[arg-type]
            return answer.status, await answer.json()


def backend_of(process: Process) -> Backend:
    return Backend(process.name, process.service, process.url, lambda: process.is_ready, process.suspect)


async def serve(stack: AsyncExitStack, server: web.Server) -> str:
    """Where a server answers until the stack ends."""
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    """Two gateways and two sync processes behind a proxy."""
    async with AsyncExitStack() as stack:
        processes = [Process("g1", "gateway"), Process("g2", "gateway"), Process("s1", "sync"), Process("s2", "sync")]
        for process in processes:
            process.url = await serve(stack, web.Server(process.handle, handler_cancellation=True))
        http = await stack.enter_async_context(open_session())
        url = await serve(stack, make_server(Proxy([backend_of(one) for one in processes], http, scheme="http")))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        yield Front(url, client, {one.name: one for one in processes})


async def test_requests_pass_unchanged(front: Front) -> None:
    path = "/_matrix/client/v3/profile/%40a%2Fb:c/x?q=%20%2B&r"
    async with front.http.put(URL(front.url + path, encoded=True), data=b"{}") as answer:
        assert answer.status == 200
        assert answer.headers["X-Twice"] == "1"
        found = await answer.json()
    assert found["headers"]["Host"] == front.url.removeprefix("http://")
    assert found["headers"]["X-Forwarded-For"] == "127.0.0.1"
    assert [("PUT", path, b"{}")] in [one.requests for one in front.processes.values()]


async def test_polls_of_a_device_stay_with_a_process(front: Front) -> None:
    answering: dict[str, set[object]] = {}
    for number in range(20):
        for _ in range(2):
            _, found = await front.ask("GET", SYNC, headers={"Authorization": f"Bearer t{number}"})
            answering.setdefault(f"t{number}", set()).add(found["name"])
        _, found = await front.ask("GET", SYNC, params={"access_token": f"t{number}"})
        answering[f"t{number}"].add(found["name"])
    assert all(len(names) == 1 for names in answering.values())
    assert set().union(*answering.values()) == {"s1", "s2"}
    # Only those who were with a process that is gone move.
    front.processes["s1"].is_ready = False
    for token, names in answering.items():
        _, found = await front.ask("GET", SYNC, headers={"Authorization": f"Bearer {token}"})
        assert found["name"] == "s2"
        assert names == {"s2"} or names == {"s1"}


async def test_what_a_process_did_not_take_goes_to_another(front: Front) -> None:
    (closed,) = free_ports(1)
    everybody = [front.processes["g1"], front.processes["g2"]]
    async with AsyncExitStack() as stack:
        gone = Process("gone", "gateway", f"http://127.0.0.1:{closed}")
        http = await stack.enter_async_context(open_session())
        backends = [backend_of(one) for one in (gone, *everybody)]
        url = await serve(stack, make_server(Proxy(backends, http, scheme="http")))
        for method in ("POST", "GET"):
            gone.is_ready = True
            async with front.http.request(method, url + "/_matrix/client/v3/x", data=b"{}") as answer:
                assert answer.status == 200
            assert not gone.is_ready  # until it was asked again
    assert [body for one in everybody for _, _, body in one.requests] == [b"{}", b"{}"]


async def test_only_what_is_harmless_is_repeated(front: Front) -> None:
    front.processes["g1"].mode = front.processes["g2"].mode = "drop"
    status, answer = await front.ask("POST", "/_matrix/client/v3/createRoom", data=b"{}")
    assert (status, answer["errcode"]) == (502, "M_UNKNOWN")
    assert sum(len(one.requests) for one in front.processes.values()) == 1
    status, _ = await front.ask("PUT", SEND, data=b"{}")
    assert status == 502
    # The client library itself tries once more where a kept connection is lost.
    assert 1 + ATTEMPTS <= sum(len(one.requests) for one in front.processes.values()) <= 1 + 2 * ATTEMPTS
    front.processes["g2"].mode = "answer"
    status, _ = await front.ask("PUT", SEND, data=b"{}")
    assert status == 200


async def test_long_bodies_pass_in_pieces(front: Front) -> None:
    content = bytes(range(256)) * 20_000
    async with front.http.put(front.url + SEND, data=io.BytesIO(content)) as answer:
        assert answer.status == 200
    got = [body for one in front.processes.values() for _, _, body in one.requests]
    assert got == [content]
    front.processes["g1"].mode = front.processes["g2"].mode = "large"
    async with front.http.get(front.url + SEND) as answer:
        assert len(await answer.read()) == 32 * 65_536


async def test_nobody_ready_is_503(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cluster.proxy.PATIENCE_SECONDS", 0.2)
    for one in front.processes.values():
        one.is_ready = False
    status, answer = await front.ask("GET", SYNC)
    assert (status, answer["retry_after_ms"]) == (503, 1000)


async def test_a_client_that_goes_ends_its_poll(front: Front) -> None:
    for name in ("s1", "s2"):
        front.processes[name].mode = "park"
    asking = asyncio.create_task(front.ask("GET", SYNC))
    parked = [asyncio.create_task(front.processes[name].parked.wait()) for name in ("s1", "s2")]
    await asyncio.wait(parked, return_when=asyncio.FIRST_COMPLETED)
    asking.cancel()
    process = next(one for one in front.processes.values() if one.parked.is_set())
    await asyncio.wait_for(process.left.wait(), 10)
    for task in parked:
        task.cancel()


def test_rendezvous_hashing_moves_few() -> None:
    backends = [backend_of(Process(f"s{number}", "sync")) for number in range(5)]
    keys = [f"token{number}".encode() for number in range(500)]
    before = {key: stick(backends, key).name for key in keys}
    after = {key: stick(backends[1:], key).name for key in keys}
    assert {before[key] for key in keys if before[key] != after[key]} == {"s0"}
    assert all(60 < list(before.values()).count(f"s{number}") < 140 for number in range(5))
