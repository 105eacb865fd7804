"""The client's address behind a reverse proxy: what X-Forwarded-For says, as far as it can be believed.

Proxies stand on the same machine or in the same network: only what comes from there is believed. Of several addresses
the last one that is not itself such a proxy counts; what stands before it may be anybody's invention.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

_NETWORKS = tuple(
    ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
# A Unix socket has no address; whoever may open it is on this machine.
_LOCAL = ("127.0.0.1", 0)


def behind_proxy(app: ASGIApp) -> ASGIApp:
    """The application, told of the client in place of the proxy."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            client = scope.get("client") or _LOCAL
            if is_proxy(client[0]):
                _take_headers(scope)
            scope["client"] = scope.get("client") or _LOCAL
        await app(scope, receive, send)

    return call


def _take_headers(scope: Scope) -> None:
    forwarded: list[str] = []
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            forwarded += value.decode("latin-1").split(",")
        elif name == b"x-forwarded-proto" and value in (b"http", b"https"):
            scope["scheme"] = value.decode("ascii")
    if forwarded and (found := client_of(forwarded)) is not None:
        scope["client"] = (found, 0)


def client_of(forwarded: Iterable[str]) -> str | None:
    """The address that counts; None if there is none that is an address."""
    found = None
    for text in reversed([_without_port(text.strip()) for text in forwarded]):
        try:
            found = str(ip_address(text))
        except ValueError:
            break
        if not is_proxy(found):
            break
    return found


@lru_cache(maxsize=4_096)
def is_proxy(address: str) -> bool:
    """Whether a proxy may stand there."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in _NETWORKS)


def _without_port(text: str) -> str:
    """`1.2.3.4:80`, `[::1]:80` and `[::1]` without what is around the address."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
