"""`tessera doctor` on a server that is as it should be, and on servers that are not."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from matrixcore.identifiers import ServerName
from matrixcore.server_keys import make_key_document
from matrixcore.signing import SigningKey, write_signing_keys
from services.doctor import opened_doctor
from tessera.clock import SystemClock
from tessera.config import Settings
from tessera.federation.connections import PeerConnections, PeerTls
from tessera.federation.dns import ServiceRecord
from tessera.federation.examination import Finding, Level
from tessera.http.address_guard import AddressGuard
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.peer_world import WrittenDns, answering, json_of
from tests.fixtures.server_process import free_port

NAME = ServerName("home.example")
KEY = SigningKey("k", b"k" * 32)


def from_now(**time: float) -> datetime:
    """A moment so far ahead."""
    return datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC) + timedelta(**time)


class HomeServer:
    """A server with keys, as wrong as a test wants it."""

    def __init__(
        self, *, name: str = NAME, key: SigningKey = KEY, behind_seconds: int = 0, valid_ms: int = 10**7
    ) -> None:
        now_ms = SystemClock().now_ms()
        self._document = make_key_document(
            ServerName(name), [key], current={}, old={}, valid_until_ts=now_ms + valid_ms
        )
        self._behind = timedelta(seconds=behind_seconds)

    async def __call__(self, request: web.Request) -> web.Response:
        date = format_datetime(from_now() - self._behind, usegmt=True)
        answers = {
            "/_matrix/key/v2/server": self._document,
            "/_matrix/federation/v1/version": {"server": {"name": "X", "version": "1"}},
        }
        answer = answers.get(request.path)
        status = 404 if answer is None else 200
        return web.json_response(answer or {}, status=status, headers={"Date": date})


class Clinic:
    """Names and servers around the doctor."""

    def __init__(self, authority: PeerAuthority, stack: AsyncExitStack) -> None:
        self.authority = authority
        self.dns = WrittenDns()
        self._stack = stack

    async def serve(self, host: str, port: int, handler: Any, **how: Any) -> None:
        """A server at a host and port, with a certificate for NAME unless told otherwise."""
        how = {"names": (NAME,), **how}
        real = await self._stack.enter_async_context(answering(self.authority, {"*": handler}, **how))
        self.dns.places[host, port] = [("127.0.0.1", real)]

    async def findings(self, *peers: str, **settings: Any) -> list[Finding]:
        made = Settings.for_tests(
            **{
                "server_name": NAME,
                "signing_key": write_signing_keys([KEY]),
                "ip_range_blocklist": [],
                **settings,
            }
        )
        pool = PeerConnections(PeerTls([self.authority.ca_file]), AddressGuard(only_public=False), self.dns)
        async with opened_doctor(made, SystemClock(), connections=pool) as doctor:
            return [finding async for _, finding in doctor.findings([ServerName(peer) for peer in peers])]


@pytest.fixture
async def clinic(peer_authority: PeerAuthority) -> AsyncIterator[Clinic]:
    async with AsyncExitStack() as stack:
        yield Clinic(peer_authority, stack)


def worst(findings: list[Finding]) -> list[str]:
    """What failed."""
    return [f"{finding.step}: {finding.text}" for finding in findings if finding.level is Level.FAILURE]


def texts(findings: list[Finding], level: Level) -> str:
    return "\n".join(f"{one.step}: {one.text}" for one in findings if one.level is level)


async def test_a_server_that_is_as_it_should_be(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer())
    findings = await clinic.findings()
    assert not worst(findings)
    good = texts(findings, Level.GOOD)
    for said in ("home.example is 127.0.0.1", "a certificate for home.example", "signs with ed25519:k", "X 1", "clock"):
        assert said in good


async def test_delegation_is_followed(clinic: Clinic) -> None:
    await clinic.serve(NAME, 443, json_of({"m.server": "m.example"}))
    clinic.dns.services["_matrix-fed._tcp.m.example"] = [ServiceRecord(1, 1, 4711, "real.example", 60)]
    await clinic.serve("real.example", 4711, HomeServer(), names=("m.example",))
    findings = await clinic.findings()
    assert not worst(findings)
    assert "delegates to m.example" in texts(findings, Level.GOOD)
    assert "leads to real.example:4711" in texts(findings, Level.GOOD)


async def expired(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer(), not_after=from_now(days=-1))


async def for_another_name(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer(), names=("other.example",))


async def wrong_well_known(clinic: Clinic) -> None:
    await clinic.serve(NAME, 443, json_of({"m.server": "https://home.example"}))
    await clinic.serve(NAME, 8448, HomeServer())


async def well_known_to_nowhere(clinic: Clinic) -> None:
    await clinic.serve(NAME, 443, json_of({"m.server": "gone.example:443"}))
    await clinic.serve(NAME, 8448, HomeServer())


async def wrong_key(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer(key=SigningKey("k", b"?" * 32)))


async def other_key_id(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer(key=SigningKey("q", b"?" * 32)))


async def another_server(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer(name="other.example"))


async def expired_document(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer(valid_ms=-1))


async def closed_port(clinic: Clinic) -> None:
    clinic.dns.places[NAME, 8448] = [("127.0.0.1", free_port())]


async def no_matrix_there(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, json_of(["hello"]))


async def no_address(clinic: Clinic) -> None:
    clinic.dns.places.clear()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (expired, "certificate has expired"),
        (for_another_name, "Hostname mismatch"),
        (wrong_well_known, "well-known: https://home.example/.well-known/matrix/server is of no use"),
        (well_known_to_nowhere, "gone.example has no address"),
        (wrong_key, "ed25519:k is published as another key"),
        (other_key_id, "ed25519:k, with which this server signs, is not published"),
        (another_server, "these are the keys of other.example"),
        (expired_document, "has expired"),
        (closed_port, "no connection"),
        (no_matrix_there, "the key document is of no use"),
        (no_address, "home.example has no address"),
    ],
)
async def test_what_is_wrong_is_named(clinic: Clinic, harm: Callable[[Clinic], Any], said: str) -> None:
    await harm(clinic)
    failures = worst(await clinic.findings())
    assert failures
    assert said in failures[0]


async def test_a_clock_that_is_wrong_and_a_certificate_that_ends_soon_are_warned_of(clinic: Clinic) -> None:
    soon = from_now(days=3)
    await clinic.serve(NAME, 8448, HomeServer(behind_seconds=600), not_after=soon)
    findings = await clinic.findings(ip_range_blocklist=["127.0.0.0/8"])
    assert not worst(findings)
    warned = texts(findings, Level.WARNING)
    for said in (" s apart", "good for 2 days", "ip_range_blocklist"):
        assert said in warned


async def test_one_address_of_two_that_answers_is_enough(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer())
    clinic.dns.places[NAME, 8448].insert(0, ("127.0.0.1", free_port()))
    findings = await clinic.findings()
    assert not worst(findings)
    assert "no connection" in texts(findings, Level.WARNING)


async def test_the_deprecated_service_name_is_warned_of(clinic: Clinic) -> None:
    clinic.dns.services["_matrix._tcp.home.example"] = [ServiceRecord(1, 1, 1, "home.example", 60)]
    await clinic.serve(NAME, 1, HomeServer())
    findings = await clinic.findings()
    assert not worst(findings)
    assert "deprecated" in texts(findings, Level.WARNING)


async def test_peers_say_whether_they_believe_us(clinic: Clinic) -> None:
    await clinic.serve(NAME, 8448, HomeServer())

    async def refuse(request: web.Request) -> web.Response:
        if request.path.endswith("/profile"):
            return web.json_response({"errcode": "M_UNAUTHORIZED", "error": "no key"}, status=401)
        return await peer(request)

    peer = HomeServer(name="peer.example", key=SigningKey("p", b"p" * 32))
    await clinic.serve("peer.example", 8448, peer, names=("peer.example",))
    assert not worst(await clinic.findings("peer.example"))
    await clinic.serve("peer.example", 8448, refuse, names=("peer.example",))
    assert worst(await clinic.findings("peer.example")) == [
        "signature: does not believe our signature: no key (does it reach us?)"
    ]
