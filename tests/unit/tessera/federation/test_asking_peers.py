"""The client between servers: signed requests, bounded answers, nothing of our own network."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from matrixcore.identifiers import ServerName
from matrixcore.signing import verify_json
from tessera.federation.authorization_header import parse_authorization
from tessera.federation.client import endpoint
from tessera.federation.dns import ServiceRecord
from tessera.federation.errors import PeerAnsweredBadly, PeerDenied, PeerRefused, PeerUnreachable
from tessera.http.address_guard import AddressGuard
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.peer_world import OWN_KEY, OWN_NAME, World, answering, asking_world, json_of

PATH = "/_matrix/federation/v1/query"


@pytest.fixture
async def world(peer_authority: PeerAuthority) -> AsyncIterator[World]:
    async with asking_world(peer_authority) as made:
        made.dns.places["localhost"] = [("127.0.0.1", 0)]
        yield made


def named(world: World, port: int) -> str:
    """A server name for a port of this machine."""
    world.dns.places["localhost", port] = [("127.0.0.1", port)]
    return f"localhost:{port}"


def gone(request: web.Request) -> bool:
    """Whether nobody is left to answer."""
    return request.transport is None or request.transport.is_closing()


class Recorded:
    """A peer that remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes, str, str]] = []

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(
            (request.method, request.raw_path, body, request.headers["Authorization"], request.headers["Host"])
        )
        return web.json_response({"ok": 1})


@pytest.mark.parametrize("body", [None, {"b": 1, "a": {"ä": [1, None]}}, b'{"a":1}'])
async def test_requests_are_signed(world: World, peer_authority: PeerAuthority, body: Any) -> None:
    peer = Recorded()
    async with answering(peer_authority, {"*": peer}) as port:
        server = named(world, port)
        path = endpoint("/_matrix/x/{}/{}", "!a/b:c", "ü ?")
        if body is None:
            assert await world.client.get(server, path, {"q": ["1", "2 3"]}) == {"ok": 1}
        else:
            assert await world.client.put(server, path, body, {"q": ["1", "2 3"]}) == {"ok": 1}
    ((method, target, sent, authorization, host),) = peer.requests
    assert target == "/_matrix/x/%21a%2Fb%3Ac/%C3%BC%20%3F?q=1&q=2+3"
    assert host == server
    said = parse_authorization(authorization)
    signed: dict[str, Any] = {
        "method": method,
        "uri": target,
        "origin": OWN_NAME,
        "destination": server,
        "signatures": {OWN_NAME: {said.key_id: said.signature}},
    }
    if body is not None:
        signed["content"] = {"a": 1} if isinstance(body, bytes) else body
        assert sent.startswith(b'{"a":')
    assert said.origin == OWN_NAME
    assert said.destination == server
    assert verify_json(signed, OWN_NAME, {OWN_KEY.key_id: OWN_KEY.public_key})


async def test_a_delegated_server_is_asked_by_the_name_it_delegated_to(
    world: World, peer_authority: PeerAuthority
) -> None:
    peer = Recorded()
    async with answering(peer_authority, {"*": peer}, names=("m.example",)) as port:
        wk = json_of({"m.server": "m.example"})
        async with answering(peer_authority, {"*": wk}, names=("example.org",)) as web_port:
            world.dns.places["example.org", 443] = [("127.0.0.1", web_port)]
            world.dns.services["_matrix-fed._tcp.m.example"] = [
                ServiceRecord(1, 0, 1, "gone.example", 60),
                ServiceRecord(2, 0, 4711, "real.example", 60),
            ]
            world.dns.places["real.example", 4711] = [("127.0.0.1", port)]
            await world.client.get("example.org", PATH)
    ((_, _, _, authorization, host),) = peer.requests
    assert host == "m.example"
    assert parse_authorization(authorization).destination == "example.org", "the signature names the server itself"


async def test_an_address_needs_a_certificate_for_it(world: World, peer_authority: PeerAuthority) -> None:
    peer = Recorded()
    async with (
        answering(peer_authority, {"*": peer}, names=("127.0.0.1",)) as port,
        answering(peer_authority, {"*": peer}, names=("localhost",)) as other,
    ):
        assert await world.client.get(f"127.0.0.1:{port}", PATH) == {"ok": 1}
        with pytest.raises(PeerUnreachable, match="certificate"):
            await world.client.get(f"127.0.0.1:{other}", PATH)
    ((*_, host),) = peer.requests
    assert host == f"127.0.0.1:{port}"


async def test_a_certificate_for_another_name_is_refused(world: World, peer_authority: PeerAuthority) -> None:
    peer = Recorded()
    async with answering(peer_authority, {"*": peer}, names=("other.example",)) as port:
        with pytest.raises(PeerUnreachable, match="certificate"):
            await world.client.get(named(world, port), PATH)
    assert not peer.requests


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        ({"errcode": "M_FORBIDDEN", "error": "no"}, {}, (403, "M_FORBIDDEN", "no", None)),
        ({"errcode": 5, "error": ["no"], "retry_after_ms": 20}, {}, (403, "M_UNKNOWN", "", 20)),
        (["no"], {"Retry-After": "3"}, (403, "M_UNKNOWN", "", 3000)),
        ({"errcode": "M_X" * 1000, "retry_after_ms": 2**70}, {}, (403, ("M_X" * 1000)[:500], "", None)),
    ],
)
async def test_refusals(
    world: World, peer_authority: PeerAuthority, body: object, headers: dict[str, str], expected: tuple[Any, ...]
) -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.json_response(body, status=403, headers=headers)

    async with answering(peer_authority, {"*": refuse}) as port:
        with pytest.raises(PeerRefused) as caught:
            await world.client.get(named(world, port), PATH)
    error = caught.value
    assert (error.status, error.errcode, error.message, error.retry_after_ms) == expected


async def test_redirects_are_refusals(world: World, peer_authority: PeerAuthority) -> None:
    async def redirect(_request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "https://127.0.0.1/"})

    async with answering(peer_authority, {"*": redirect}) as port:
        with pytest.raises(PeerRefused) as caught:
            await world.client.get(named(world, port), PATH)
    assert caught.value.status == 302


@pytest.mark.parametrize("answer", ["[1]", "nothing", "", '{"a":1'])
async def test_answers_that_are_no_objects(world: World, peer_authority: PeerAuthority, answer: str) -> None:
    async def reply(_request: web.Request) -> web.Response:
        return web.Response(text=answer)

    async with answering(peer_authority, {"*": reply}) as port:
        with pytest.raises(PeerAnsweredBadly):
            await world.client.get(named(world, port), PATH)


async def test_endless_answers_are_cut(world: World, peer_authority: PeerAuthority) -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while not gone(request):
            await response.write(b" " * 65536)
            await asyncio.sleep(0)
            sent += 65536
        return response

    async with answering(peer_authority, {"*": flood}) as port:
        with pytest.raises(PeerAnsweredBadly, match="longer"):
            await world.client.get(named(world, port), PATH, max_bytes=1 << 20)
    assert sent < 16 << 20


async def test_drops_of_an_answer_end_with_the_time(world: World, peer_authority: PeerAuthority) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not gone(request):
            await response.write(b" ")
            await asyncio.sleep(0.01)
        return response

    async with answering(peer_authority, {"*": drip}) as port:
        with pytest.raises(PeerUnreachable, match="did not answer"):
            await world.client.get(named(world, port), PATH, timeout_s=0.2)


async def test_a_head_without_end_is_cut(world: World, peer_authority: PeerAuthority) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                writer.write(b"X-Y: " + b"z" * 60_000 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=peer_authority.server_context())
    async with server:
        with pytest.raises(PeerUnreachable):
            await world.client.get(named(world, server.sockets[0].getsockname()[1]), PATH, timeout_s=5)


async def test_nobody_there(world: World) -> None:
    with pytest.raises(PeerUnreachable):
        await world.client.get("nowhere.example:1", PATH)
    with pytest.raises(PeerUnreachable):
        await world.client.get("not a name", PATH)


@pytest.mark.parametrize(
    "place", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1", "0.0.0.0"]
)
async def test_addresses_of_our_own_network_are_never_called(peer_authority: PeerAuthority, place: str) -> None:
    from tessera.config.settings import PRIVATE_NETWORKS

    guard = AddressGuard(PRIVATE_NETWORKS, only_public=False)
    peer = Recorded()
    async with asking_world(peer_authority, guard=guard) as world, answering(peer_authority, {"*": peer}) as port:
        world.dns.places["inside.example", 443] = [(place, port)]
        world.dns.places["inside.example", port] = [(place, port)]
        world.dns.places["inside.example", 8448] = [(place, port)]
        literal = f"[{place}]:{port}" if ":" in place else f"{place}:{port}"
        for server in ("inside.example", f"inside.example:{port}", literal):
            with pytest.raises(PeerUnreachable):
                await world.client.get(server, PATH)
    assert not peer.requests


async def test_a_redirect_of_a_well_known_file_into_our_network_is_not_followed(peer_authority: PeerAuthority) -> None:
    from ipaddress import ip_network

    peer = Recorded()
    guard = AddressGuard([ip_network("127.0.0.2/32")], only_public=False)

    async def redirect(_request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"https://127.0.0.2:{port}/x"})

    async with (
        asking_world(peer_authority, guard=guard) as world,
        answering(peer_authority, {"/.well-known/matrix/server": redirect, "*": peer}, names=("a.example",)) as port,
    ):
        world.dns.places["a.example", 443] = [("127.0.0.1", port)]
        assert await world.well_known.find(ServerName("a.example")) is None
    assert not peer.requests


async def test_whom_the_operator_does_not_want(peer_authority: PeerAuthority) -> None:
    async with asking_world(peer_authority, only=["friend.example:1"], denied=["*.bad.example"]) as world:
        for server in ("stranger.example", "x.bad.example", OWN_NAME):
            with pytest.raises(PeerDenied):
                await world.client.get(server, PATH)
        with pytest.raises(PeerUnreachable) as caught:
            await world.client.get("friend.example:1", PATH)
        assert not isinstance(caught.value, PeerDenied)


async def test_bytes_and_streams(world: World, peer_authority: PeerAuthority) -> None:
    async def media(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 300_000, content_type="image/png")

    async with answering(peer_authority, {"*": media}) as port:
        server = named(world, port)
        assert await world.client.get_bytes(server, PATH) == ("image/png", b"x" * 300_000)
        async with world.client.stream(server, PATH) as answer:
            assert max([len(piece) async for piece in answer.chunks()]) <= 65536
        async with world.client.stream_url(f"https://{server}/a", timeout_s=5, max_bytes=10) as answer:
            with pytest.raises(PeerAnsweredBadly):
                await answer.read()
        with pytest.raises(PeerAnsweredBadly):
            async with world.client.stream_url(f"http://{server}/a", timeout_s=5, max_bytes=10):
                pass
