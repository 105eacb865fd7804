"""Names of hosts and of services, asked without blocking anybody.

The system's own way (getaddrinfo in threads) would hold a thread for each dead domain; c-ares waits for thousands at
once. It heeds /etc/hosts and resolv.conf like the other.
"""

import socket
from dataclasses import dataclass
from typing import Protocol

import aiodns
import pycares

QUERY_SECONDS = 5.0
TRIES = 2
_NOTHING = frozenset({aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA, aiodns.error.ARES_ENONAME})
MAX_ADDRESSES = 16  # of one name; more are an attempt to make us knock everywhere
MAX_SERVICES = 16


class DnsFailed(OSError):
    """The name servers did not answer, or not usefully; whether there is such a name is not known."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One SRV record. A target of "." says that the service is decidedly not there.

    Attributes:
        ttl_seconds: how long it may be remembered.
    """

    priority: int
    weight: int
    port: int
    target: str
    ttl_seconds: int


class Dns(Protocol):
    """What discovery asks; tests answer it themselves."""

    async def find_places(self, host: str, port: int, family: int = socket.AF_UNSPEC) -> list[tuple[str, int]]:
        """Addresses of a host, each with the port to use there; [] if there is no such host.

        Raises:
            DnsFailed
        """
        ...

    async def find_services(self, name: str) -> list[ServiceRecord]:
        """The SRV records of a name such as `_matrix-fed._tcp.example.org`; [] if there are none.

        Raises:
            DnsFailed
        """
        ...

    async def close(self) -> None:
        """End what is under way."""
        ...


class SystemDns:
    """The name servers that this machine uses."""

    def __init__(self) -> None:
        self._resolver = aiodns.DNSResolver(timeout=QUERY_SECONDS, tries=TRIES)

    async def find_places(self, host: str, port: int, family: int = socket.AF_UNSPEC) -> list[tuple[str, int]]:
        try:
            found = await self._resolver.getaddrinfo(
                host, family=socket.AddressFamily(family), port=port, type=socket.SOCK_STREAM
            )
        except aiodns.error.DNSError as error:
            if error.args and error.args[0] in _NOTHING:
                return []
            raise DnsFailed(_reason(error)) from error
        places: dict[tuple[str, int], None] = {}
        for node in found.nodes:
            address = node.addr[0]
            places[address.decode("ascii") if isinstance(address, bytes) else address, port] = None
        return list(places)[:MAX_ADDRESSES]

    async def find_services(self, name: str) -> list[ServiceRecord]:
        try:
            found = await self._resolver.query_dns(name, "SRV")
        except aiodns.error.DNSError as error:
            if error.args and error.args[0] in _NOTHING:
                return []
            raise DnsFailed(_reason(error)) from error
        records = [
            ServiceRecord(data.priority, data.weight, data.port, data.target, record.ttl)
            for record in found.answer
            if isinstance(data := record.data, pycares.SRVRecordData)
        ]
        return records[:MAX_SERVICES]

    async def close(self) -> None:
        await self._resolver.close()


def _reason(error: aiodns.error.DNSError) -> str:
    return str(error.args[1]) if len(error.args) > 1 else "the name servers do not answer"
