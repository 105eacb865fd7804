"""The client's address behind a reverse proxy: what X-Forwarded-For says, as far as it can be believed.

Proxies stand on the same machine or in the same network, or where the operator says: only what comes from there is
believed. Of several addresses the last one that is not itself such a proxy counts; what stands before it may be
anybody's invention.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

OWN_NETWORKS = tuple(
    ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
# A Unix socket has no address; whoever may open it is on this machine.
_LOCAL = ("127.0.0.1", 0)


class Proxies:
    """Where proxies may stand.

    Args:
        more: networks beside our own.
    """

    def __init__(self, more: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        self._networks = (*OWN_NETWORKS, *more)
        self.include = lru_cache(maxsize=4_096)(self._include)  # the same few addresses in front of every request

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, told of the client in place of the proxy."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                client = scope.get("client") or _LOCAL
                scope["client"] = client
                if self.include(client[0]):
                    self._take_headers(scope)
            await app(scope, receive, send)

        return call

    def client_of(self, forwarded: Sequence[str]) -> str | None:
        """The address that counts; None if there is none that is an address."""
        found = None
        for text in reversed(forwarded):
            try:
                found = str(ip_address(_without_port(text.strip())))
            except ValueError:
                break
            if not self.include(found):
                break
        return found

    def _take_headers(self, scope: Scope) -> None:
        forwarded: list[str] = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                forwarded += value.decode("latin-1").split(",")
            elif name == b"x-forwarded-proto" and value in (b"http", b"https"):
                scope["scheme"] = value.decode("ascii")
        if forwarded and (found := self.client_of(forwarded)) is not None:
            scope["client"] = (found, 0)

    def _include(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._networks)


def _without_port(text: str) -> str:
    """`1.2.3.4:80`, `[::1]:80` and `[::1]` without what is around the address."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
