"""Server discovery, step by step. Spec: S-S API §Resolving server names."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from matrixcore.identifiers import ServerName, parse_server_name
from tessera.clock import FakeClock
from tessera.federation.discovery import Target, in_order
from tessera.federation.dns import DnsFailed, ServiceRecord
from tessera.federation.errors import PeerUnreachable
from tessera.federation.well_known import HOUR, PATH
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.peer_world import World, answering, asking_world, json_of

NAME = ServerName("example.org")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def world(peer_authority: PeerAuthority, clock: FakeClock) -> AsyncIterator[World]:
    async with asking_world(peer_authority, clock=clock) as made:
        yield made


async def delegating(world: World, port: int) -> None:
    """The web server of NAME is on this machine."""
    world.dns.places[NAME, 443] = [("127.0.0.1", port)]


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("1.2.3.4", "1.2.3.4", 8448),
        ("1.2.3.4:80", "1.2.3.4", 80),
        ("[2001:db8::1]", "2001:db8::1", 8448),
        ("[2001:db8::1]:80", "2001:db8::1", 80),
        ("example.org:80", "example.org", 80),
    ],
)
async def test_addresses_and_ports_ask_nobody(world: World, name: str, host: str, port: int) -> None:
    assert await world.discovery.find(parse_server_name(name)) == [Target(host, port, name, host)]
    assert not world.dns.asked


@pytest.mark.parametrize(
    ("delegated", "target"),
    [
        ("1.2.3.4", Target("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")),
        ("[::2]:1", Target("::2", 1, "[::2]:1", "::2")),
        ("matrix.example.com:443", Target("matrix.example.com", 443, "matrix.example.com:443", "matrix.example.com")),
        ("matrix.example.com", Target("matrix.example.com", 8448, "matrix.example.com", "matrix.example.com")),
    ],
)
async def test_delegation(world: World, peer_authority: PeerAuthority, delegated: str, target: Target) -> None:
    async with answering(peer_authority, {PATH: json_of({"m.server": delegated})}, names=(NAME,)) as port:
        await delegating(world, port)
        assert await world.discovery.find(NAME) == [target]


async def test_services_of_a_delegated_name_come_before_its_own_port(
    world: World, peer_authority: PeerAuthority
) -> None:
    world.dns.services["_matrix._tcp.m.example"] = [ServiceRecord(10, 0, 1234, "old.example.", 300)]
    async with answering(peer_authority, {PATH: json_of({"m.server": "m.example"})}, names=(NAME,)) as port:
        await delegating(world, port)
        assert await world.discovery.find(NAME) == [Target("old.example", 1234, "m.example", "m.example")]
        assert world.dns.asked == ["_matrix-fed._tcp.m.example", "_matrix._tcp.m.example"]


async def test_without_a_file_services_of_the_name_count(world: World) -> None:
    world.dns.services["_matrix-fed._tcp.example.org"] = [
        ServiceRecord(20, 0, 2, "b.example", 300),
        ServiceRecord(10, 0, 1, "a.example", 300),
    ]
    world.dns.services["_matrix._tcp.example.org"] = [ServiceRecord(0, 0, 3, "never.example", 300)]
    assert await world.discovery.find(NAME) == [
        Target("a.example", 1, NAME, NAME),
        Target("b.example", 2, NAME, NAME),
    ]


async def test_without_anything_the_name_itself_on_8448(world: World) -> None:
    world.dns.services["_matrix-fed._tcp.example.org"] = DnsFailed("no answer")
    assert await world.discovery.find(NAME) == [Target(NAME, 8448, NAME, NAME)]


async def test_a_service_that_is_decidedly_not_there(world: World) -> None:
    world.dns.services["_matrix-fed._tcp.example.org"] = [ServiceRecord(0, 0, 0, ".", 300)]
    with pytest.raises(PeerUnreachable):
        await world.discovery.find(NAME)


async def test_services_are_remembered_as_long_as_they_say(world: World, clock: FakeClock) -> None:
    world.dns.services["_matrix-fed._tcp.example.org"] = [ServiceRecord(0, 0, 1, "a.example", 200)]
    for seconds, asked in ((0, 1), (199, 1), (2, 2)):
        clock.shift(seconds)
        await world.discovery.find(NAME)
        assert len(world.dns.asked) == asked


def test_services_of_one_priority_are_drawn_by_weight() -> None:
    records = [ServiceRecord(1, weight, weight, f"w{weight}", 60) for weight in (0, 10, 90)]
    assert [one.weight for one in in_order(records, lambda: 0.99)] == [90, 10, 0]
    assert [one.weight for one in in_order(records, lambda: 0.05)] == [10, 90, 0]
    assert [one.weight for one in in_order(records, lambda: 0.0)] == [0, 10, 90]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"m.server": 1},
        {"m.server": "not a name"},
        {"m.server": ""},
        ["m.server"],
        {"m.server": "a.example:99999"},
    ],
)
async def test_a_file_that_says_nothing_useful_is_as_good_as_none(
    world: World, peer_authority: PeerAuthority, answer: object
) -> None:
    async with answering(peer_authority, {PATH: json_of(answer)}, names=(NAME,)) as port:
        await delegating(world, port)
        assert await world.discovery.find(NAME) == [Target(NAME, 8448, NAME, NAME)]


async def test_a_wrong_certificate_makes_the_file_worthless(world: World, peer_authority: PeerAuthority) -> None:
    async with answering(peer_authority, {PATH: json_of({"m.server": "evil.example:1"})}, names=("x.example",)) as port:
        await delegating(world, port)
        assert await world.discovery.find(NAME) == [Target(NAME, 8448, NAME, NAME)]


class CountedFile:
    """A well-known file whose answers a test changes."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer = web.json_response({"m.server": "m.example:1"})

    async def __call__(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(body=self.answer.body, status=self.answer.status, headers=self.answer.headers)


@pytest.mark.parametrize(
    ("headers", "hours"),
    [
        ({}, 24),
        ({"Cache-Control": "max-age=7200"}, 2),
        ({"Cache-Control": "public, max-age=99999999"}, 48),
        ({"Cache-Control": "no-store"}, 300 / HOUR),
        ({"Cache-Control": "max-age=0"}, 300 / HOUR),
        ({"Expires": "0"}, 300 / HOUR),
        ({"Expires": "Thu, 01 Jan 2099 00:00:00 GMT"}, 48),
    ],
)
async def test_how_long_a_file_is_remembered(
    world: World, clock: FakeClock, peer_authority: PeerAuthority, headers: dict[str, str], hours: float
) -> None:
    file = CountedFile()
    file.answer.headers.update(headers)
    async with answering(peer_authority, {PATH: file}, names=(NAME,)) as port:
        await delegating(world, port)
        await asyncio.gather(*(world.discovery.find(NAME) for _ in range(20)))
        assert file.asked == 1, "who asks at the same time waits for the same answer"
        clock.shift(hours * HOUR - 1)
        await world.discovery.find(NAME)
        assert file.asked == 1
        clock.shift(2)
        await world.discovery.find(NAME)
        assert file.asked == 2


async def test_failures_are_remembered_for_longer_each_time_and_an_hour_at_most(
    world: World, clock: FakeClock, peer_authority: PeerAuthority
) -> None:
    file = CountedFile()
    file.answer = web.json_response({}, status=404)
    async with answering(peer_authority, {PATH: file}, names=(NAME,)) as port:
        await delegating(world, port)
        for count, seconds in enumerate((60, 120, 240, 480, 960, 1920, 3600, 3600), start=1):
            await world.discovery.find(NAME)
            assert file.asked == count
            clock.shift(seconds - 1)
            await world.discovery.find(NAME)
            assert file.asked == count
            clock.shift(2)


async def test_a_web_server_that_is_away_has_not_changed_its_mind(
    world: World, clock: FakeClock, peer_authority: PeerAuthority
) -> None:
    file = CountedFile()
    target = [Target("m.example", 1, "m.example:1", "m.example")]
    async with answering(peer_authority, {PATH: file}, names=(NAME,)) as port:
        await delegating(world, port)
        assert await world.discovery.find(NAME) == target
        file.answer = web.json_response({}, status=503)
        clock.shift(24 * HOUR)
        assert await world.discovery.find(NAME) == target
        assert file.asked == 2
        clock.shift(24 * HOUR)
        assert await world.discovery.find(NAME) == [Target(NAME, 8448, NAME, NAME)], "not beyond 48 hours"
        assert file.asked == 3


async def test_redirects_are_followed_and_not_for_ever(
    world: World, clock: FakeClock, peer_authority: PeerAuthority
) -> None:
    steps: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        step = int(request.match_info["step"])
        steps.append(request.path)
        if step == 0:
            return web.json_response({"m.server": "m.example:1"})
        return web.Response(status=302, headers={"Location": f"/step/{step - 1}"})

    async def begin(_request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": f"https://{NAME}/step/{length}"})

    async with answering(peer_authority, {PATH: begin, "/step/{step}": redirect}, names=(NAME,)) as port:
        await delegating(world, port)
        length = 4
        assert (await world.discovery.find(NAME))[0].host == "m.example"
        length = 1_000_000
        clock.shift(48 * HOUR)
        steps.clear()
        assert await world.discovery.find(NAME) == [Target(NAME, 8448, NAME, NAME)]
        assert len(steps) == 5


async def test_a_file_of_a_gigabyte_is_cut(world: World, peer_authority: PeerAuthority) -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Length": str(1 << 30)})
        await response.prepare(request)
        while sent < 1 << 30 and request.transport is not None and not request.transport.is_closing():
            await response.write(b" " * 65536)
            await asyncio.sleep(0)
            sent += 65536
        return response

    async with answering(peer_authority, {PATH: flood}, names=(NAME,)) as port:
        await delegating(world, port)
        assert await world.discovery.find(NAME) == [Target(NAME, 8448, NAME, NAME)]
    assert sent < 16 << 20


async def test_a_file_that_comes_in_drops_is_given_up(
    world: World, peer_authority: PeerAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while request.transport is not None and not request.transport.is_closing():
            await response.write(b" ")
            await asyncio.sleep(0.01)
        return response

    monkeypatch.setattr("tessera.federation.well_known.FETCH_SECONDS", 0.2)
    async with answering(peer_authority, {PATH: drip}, names=(NAME,)) as port:
        await delegating(world, port)
        assert await world.discovery.find(NAME) == [Target(NAME, 8448, NAME, NAME)]


async def test_no_redirect_leads_out_of_https(world: World, peer_authority: PeerAuthority) -> None:
    async def begin(_request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": "http://example.org/"})

    async with answering(peer_authority, {PATH: begin}, names=(NAME,)) as port:
        await delegating(world, port)
        assert await world.discovery.find(NAME) == [Target(NAME, 8448, NAME, NAME)]
