"""Addresses that nobody may make this server call."""

import socket
from ipaddress import ip_network

import pytest

from tessera.config.settings import PRIVATE_NETWORKS
from tessera.http.address_guard import AddressGuard, BlockedAddress

GUARD = AddressGuard(PRIVATE_NETWORKS)
PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:4700::6810:84e5", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"]
INNER = [
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fd00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:c0a8:101::1",
    "2001:0:7f00:1:0:0:80ff:fffe",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_called(address: str) -> None:
    assert GUARD.allows(address)


@pytest.mark.parametrize("address", INNER)
def test_no_address_of_the_inner_network_may_be_called(address: str) -> None:
    assert not GUARD.allows(address)
    assert not AddressGuard().allows(address), "not even where the operator names no networks"


@pytest.mark.parametrize("text", ["010.0.0.1", "0x7f.0.0.1", "2130706433", "127.1", "localhost", "", " 8.8.8.8"])
def test_odd_spellings_are_no_addresses(text: str) -> None:
    assert not GUARD.allows(text)


def test_the_operator_blocks_and_allows() -> None:
    guard = AddressGuard([ip_network("8.8.0.0/16"), ip_network("10.0.0.0/8")], [ip_network("10.5.0.0/16")])
    assert not guard.allows("8.8.8.8")
    assert not guard.allows("::ffff:8.8.8.8")
    assert guard.allows("10.5.0.1")
    assert guard.allows("::ffff:10.5.0.1")
    assert not guard.allows("10.6.0.1")


def test_sockets_are_made_for_allowed_addresses_only() -> None:
    stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    with GUARD.open_socket((socket.AF_INET, *stream, ("93.184.215.14", 443))) as made:
        assert made.family == socket.AF_INET
    for family, place in (
        (socket.AF_INET, ("127.0.0.1", 80)),
        (socket.AF_INET, ("012.0.0.1", 80)),
        (socket.AF_INET6, ("::1", 80, 0, 0)),
        (socket.AF_UNIX, ("/run/postgresql/.s.PGSQL.5432",)),
    ):
        with pytest.raises(BlockedAddress):
            GUARD.open_socket((family, *stream, place))
