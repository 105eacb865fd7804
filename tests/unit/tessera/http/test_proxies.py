"""The client's address behind proxies."""

from ipaddress import ip_network
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tessera.http.proxies import Proxies

PROXIES = Proxies([ip_network("198.51.100.0/24")])


async def scope_behind(client: tuple[str, int] | None, *headers: tuple[bytes, bytes]) -> Scope:
    """What an application is told."""
    told: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        told.append(scope)

    scope: dict[str, Any] = {"type": "http", "client": client, "headers": list(headers), "scheme": "http"}
    await PROXIES.around(app)(scope, None, None)  # type: ignore[arg-type]
    return told[0]


@pytest.mark.parametrize(
    ("proxy", "forwarded", "client"),
    [
        ("127.0.0.1", b"203.0.113.7", "203.0.113.7"),
        ("172.17.0.2", b"2001:db8::7", "2001:db8::7"),
        ("::ffff:10.0.0.1", b"203.0.113.7", "203.0.113.7"),
        # A client's own header, to which the proxy adds the true address.
        ("127.0.0.1", b"1.1.1.1, 203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", b"1.1.1.1, 203.0.113.7, 10.0.0.9", "203.0.113.7"),
        ("127.0.0.1", b"10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("127.0.0.1", b"203.0.113.7:4711", "203.0.113.7"),
        ("127.0.0.1", b"[2001:db8::7]:80", "2001:db8::7"),
        # One that the operator names.
        ("198.51.100.1", b"1.1.1.1, 203.0.113.7, 198.51.100.2", "203.0.113.7"),
        # Nobody's proxy.
        ("203.0.113.1", b"1.1.1.1", "203.0.113.1"),
        ("127.0.0.1", b"", "127.0.0.1"),
        ("127.0.0.1", b"unknown", "127.0.0.1"),
        ("127.0.0.1", b"\xff\xfe", "127.0.0.1"),
    ],
)
async def test_the_address_that_counts(proxy: str, forwarded: bytes, client: str) -> None:
    scope = await scope_behind((proxy, 9), (b"x-forwarded-for", forwarded))
    assert scope["client"][0] == client


async def test_a_unix_socket_is_a_proxy() -> None:
    assert (await scope_behind(None))["client"] == ("127.0.0.1", 0)
    scope = await scope_behind(None, (b"x-forwarded-for", b"203.0.113.7"), (b"x-forwarded-proto", b"https"))
    assert (scope["client"][0], scope["scheme"]) == ("203.0.113.7", "https")


async def test_several_headers_are_one_list() -> None:
    scope = await scope_behind(("127.0.0.1", 1), (b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"203.0.113.7"))
    assert scope["client"][0] == "203.0.113.7"
    assert (await scope_behind(("127.0.0.1", 1), (b"x-forwarded-proto", b"gopher")))["scheme"] == "http"


def test_what_is_no_address_ends_the_list() -> None:
    assert PROXIES.client_of(["203.0.113.7", "junk"]) is None
    assert PROXIES.client_of(["junk", "203.0.113.7"]) == "203.0.113.7"
    assert PROXIES.client_of([]) is None
