"""Which addresses this server may be made to call: none of its own network's, whatever a name resolves to.

The check sits where the socket is made, on the very address that is connected to. A name that resolves differently
the next time, a redirect, an odd spelling of an address: all of them come through here.

Spec: none; Synapse's ip_range_blocklist and url_preview_ip_range_blacklist have this meaning.
"""

import socket
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# (family, type, protocol, canonical name, socket address), as getaddrinfo has it.
AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]

_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))


class BlockedAddress(OSError):
    """The address may not be called."""


class AddressGuard:
    """Refuses networks.

    Args:
        blocked: what may not be called, beside everything that is not a public address.
        allowed: exceptions from both.
        only_public: False where `blocked` alone says what may not be called.
    """

    def __init__(
        self, blocked: Sequence[Network] = (), allowed: Sequence[Network] = (), *, only_public: bool = True
    ) -> None:
        self._blocked = tuple(blocked)
        self._allowed = tuple(allowed)
        self._only_public = only_public

    def allows(self, text: str) -> bool:
        """Whether an address may be called; what is no address in its plain spelling may not."""
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return all(self._is_open(one) for one in _meant_by(address))

    def open_socket(self, info: AddressInfo) -> socket.socket:
        """A socket for a connection to this address; a `socket_factory` of aiohttp.

        Raises:
            BlockedAddress
        """
        family, kind, protocol, _, place = info
        if family not in (socket.AF_INET, socket.AF_INET6) or not self.allows(str(place[0])):
            raise BlockedAddress("the address may not be called")
        return socket.socket(family, kind, protocol)

    def _is_open(self, address: Address) -> bool:
        if any(address in network for network in self._allowed):
            return True
        if self._only_public and (not address.is_global or address.is_multicast):
            return False
        return not any(address in one for one in self._blocked)


def _meant_by(address: Address) -> Iterator[Address]:
    """The address, and those of IPv4 that it stands for."""
    if isinstance(address, IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if any(address in network for network in _NAT64):
        yield IPv4Address(int(address) & 0xFFFF_FFFF)
