"""Requests of other servers: who made them, and how many at once. Spec: S-S API §Request Authentication."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from key_world import KeyPeer, KeyWorld
from starlette.responses import Response

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import ServerName
from matrixcore.signing import SigningKey, sign_json
from tessera.config.rate_limits import FederationLimits
from tessera.federation.authentication import CurrentPeer, PeerAuthenticator
from tessera.federation.peer_limits import PeerLimits, UnprovenBodies
from tessera.federation.policy import FederationPolicy
from tessera.http.app import create_app
from tessera.http.errors import LimitExceeded
from tessera.http.replies import json_reply
from tessera.ids import IdSource
from tests.fixtures.peer_world import OWN_NAME

PATH = "/_matrix/federation/v1/echo"


class Asking:
    """Our server's one endpoint, and requests to it."""

    def __init__(self, keys: KeyWorld, http: httpx.AsyncClient) -> None:
        self.keys = keys
        self.http = http
        self.release = asyncio.Event()
        self.entered = 0
        self.release.set()

    async def ask(
        self,
        peer: KeyPeer,
        body: Any = None,
        *,
        target: str = PATH,
        destination: str | None = OWN_NAME,
        key: SigningKey | None = None,
        change: Callable[[dict[str, Any]], None] = lambda _signed: None,
    ) -> httpx.Response:
        """A request that a peer signs; `change` is made to what it signs, not to what it sends."""
        method = "GET" if body is None else "PUT"
        signed: dict[str, Any] = {"method": method, "uri": target, "origin": peer.name, "destination": destination}
        if destination is None:
            del signed["destination"]
        if body is not None:
            signed["content"] = body
        change(signed)
        ((key_id, signature),) = sign_json(signed, peer.name, key or peer.key)["signatures"][peer.name].items()
        header = f'X-Matrix origin="{peer.name}",key="{key_id}",sig="{signature}"'
        if destination is not None:
            header += f',destination="{destination}"'
        content = None if body is None else encode_canonical_json(body)
        return await self.http.request(method, target, content=content, headers={"Authorization": header})


@pytest.fixture
def limits() -> FederationLimits:
    return FederationLimits()


@pytest.fixture
async def asking(keys: KeyWorld, limits: FederationLimits) -> AsyncIterator[Asking]:
    router = APIRouter()
    peer_limits = PeerLimits(limits, keys.clock)
    policy = FederationPolicy(OWN_NAME, denied=["*.bad.example:*"])
    peers = PeerAuthenticator(OWN_NAME, keys.keyring(), policy, peer_limits, keys.clock)

    @router.put(PATH)
    @router.get(PATH)
    @router.get(PATH + "/{more}")
    async def echo(peer: CurrentPeer) -> Response:
        made.entered += 1
        await made.release.wait()
        return json_reply({"origin": peer.origin, "content": peer.content})

    app = create_app(routes=(), routers=[router], state={"peers": peers}, ids=IdSource())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="https://us.example") as http:
        made = Asking(keys, http)
        yield made


async def test_a_signed_request(asking: Asking) -> None:
    peer = await asking.keys.peer("a.example")
    for body in (None, {"b": {"ä": [1, None]}, "a": 2}):
        for destination in (OWN_NAME, None):
            answer = await asking.ask(peer, body, destination=destination)
            assert answer.status_code == 200, answer.text
            assert answer.json() == {"origin": peer.name, "content": body or {}}
    assert (await asking.ask(peer, target=PATH + "/%21a%2Fb%3Ac?x=1&y=%20")).status_code == 200
    assert peer.asked == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"destination": "other.example"},
        {"key": SigningKey("1", b"?" * 32)},
        {"key": SigningKey("unknown", b"?" * 32)},
        {"change": lambda signed: signed.update(method="POST")},
        {"change": lambda signed: signed.update(uri=PATH + "?x=1")},
        {"change": lambda signed: signed.update(destination="other.example")},
        {"change": lambda signed: signed.update(content={"a": 1})},
        {"body": {"a": 1}, "change": lambda signed: signed.update(content={"a": 2})},
        {"body": {"a": 1}, "change": lambda signed: signed.pop("content")},
    ],
)
async def test_a_wrong_signature(asking: Asking, wrong: dict[str, Any]) -> None:
    peer = await asking.keys.peer("a.example")
    body = wrong.pop("body", None)
    answer = await asking.ask(peer, body, **wrong)
    assert (answer.status_code, answer.json()["errcode"]) == (401, "M_UNAUTHORIZED")
    assert asking.entered == 0


@pytest.mark.parametrize("header", [None, "Bearer abc", "X-Matrix nonsense", "X-Matrix origin=a.example,key=x,sig=y"])
async def test_no_signature(asking: Asking, header: str | None) -> None:
    answer = await asking.http.get(PATH, headers={} if header is None else {"Authorization": header})
    assert (answer.status_code, answer.json()["errcode"]) == (401, "M_UNAUTHORIZED")


async def test_whom_the_operator_does_not_want(asking: Asking) -> None:
    bad = await asking.keys.peer("x.bad.example")
    answer = await asking.ask(bad)
    assert (answer.status_code, answer.json()["errcode"]) == (403, "M_FORBIDDEN")
    assert bad.asked == 0, "not even its key is fetched"
    ourselves = KeyPeer(OWN_NAME, asking.keys.clock)
    assert (await asking.ask(ourselves)).status_code == 403


async def test_a_key_that_expired_signs_no_requests(asking: Asking) -> None:
    peer = await asking.keys.peer("a.example")
    retired = SigningKey("0", b"r" * 32)
    peer.old[retired.key_id] = (retired.public_key, asking.keys.clock.now_ms() - 1)
    assert (await asking.ask(peer, key=retired)).status_code == 401
    assert (await asking.ask(peer)).status_code == 200


async def test_bodies_that_are_none(asking: Asking) -> None:
    peer = await asking.keys.peer("a.example")
    assert (await asking.ask(peer, [1])).json()["errcode"] == "M_BAD_JSON"
    header = f'X-Matrix origin="{peer.name}",key="{peer.key.key_id}",sig="abc"'
    answer = await asking.http.put(PATH, content=b"{", headers={"Authorization": header})
    assert answer.json()["errcode"] == "M_NOT_JSON"


@pytest.mark.parametrize("limits", [FederationLimits(concurrent=2, reject_limit=3, sleep_limit=1000)])
async def test_one_peer_s_flood_is_bounded_and_keeps_nobody_else_waiting(asking: Asking) -> None:
    flooding, quiet = await asking.keys.peer("a.example"), await asking.keys.peer("b.example")
    asking.release.clear()
    flood = [asyncio.create_task(asking.ask(flooding)) for _ in range(20)]
    done, _ = await asyncio.wait(flood, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 15 or asking.entered < 2:
        done, _ = await asyncio.wait(flood, timeout=0.05)
    assert {task.result().status_code for task in done} == {429}
    assert {task.result().json()["errcode"] for task in done} == {"M_LIMIT_EXCEEDED"}
    assert len(done) == 15, "two are answered, three wait"
    assert asking.entered == 2
    other = asyncio.create_task(asking.ask(quiet))
    while asking.entered < 3:
        await asyncio.wait([other], timeout=0.05)
    asking.release.set()
    assert (await other).status_code == 200
    answers = [await task for task in flood]
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 15


@pytest.mark.parametrize("limits", [FederationLimits(sleep_limit=3, sleep_delay=500, concurrent=10)])
async def test_who_asks_too_often_is_slowed_down(asking: Asking) -> None:
    peer = await asking.keys.peer("a.example")
    for _ in range(3):
        assert (await asking.ask(peer)).status_code == 200
    slow = asyncio.create_task(asking.ask(peer))
    await asyncio.wait([slow], timeout=0.1)
    assert asking.entered == 3
    await asking.keys.clock.advance(0.5)
    assert (await slow).status_code == 200


@pytest.mark.parametrize("limits", [FederationLimits(concurrent=1, reject_limit=1)])
async def test_who_only_claims_to_be_a_peer_uses_up_nothing_of_what_it_may_ask(asking: Asking) -> None:
    peer = await asking.keys.peer("a.example")
    forged = [asking.ask(peer, key=SigningKey("1", b"?" * 32)) for _ in range(20)]
    assert {answer.status_code for answer in await asyncio.gather(*forged)} == {401}
    assert (await asking.ask(peer)).status_code == 200


def test_long_bodies_of_strangers_are_few() -> None:
    bodies = UnprovenBodies()
    with ExitStack() as held:
        for _ in range(100):
            held.enter_context(bodies.slot("192.0.2.1", 1000))
        for address in range(4):
            for _ in range(4):
                held.enter_context(bodies.slot(f"192.0.2.{address}", None))
            with pytest.raises(LimitExceeded):
                held.enter_context(bodies.slot(f"192.0.2.{address}", 1 << 20))
        with pytest.raises(LimitExceeded):
            held.enter_context(bodies.slot("192.0.2.99", 1 << 20))
    with bodies.slot("192.0.2.99", 1 << 20):
        pass


async def test_without_federation_nobody_is_a_peer(keys: KeyWorld) -> None:
    policy = FederationPolicy(OWN_NAME, enabled=False)
    assert not policy.allows(ServerName("a.example"))
    assert FederationPolicy(OWN_NAME, only=[]).allows(ServerName("a.example")) is False
