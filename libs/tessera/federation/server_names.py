"""Taking server names apart. Spec: Appendices §Server Name."""

from dataclasses import dataclass
from ipaddress import ip_address

from matrixcore.identifiers import ServerName


@dataclass(frozen=True, slots=True)
class SplitName:
    """A server name in parts.

    Attributes:
        host: a name or an address, IPv6 without brackets.
    """

    host: str
    port: int | None
    is_address: bool


def split_server_name(server: ServerName) -> SplitName:
    """The parts of a name that has been parsed."""
    if server.startswith("["):
        host, _, rest = server[1:].partition("]")
        return SplitName(host, int(rest[1:]) if rest else None, is_address=True)
    host, colon, port = server.partition(":")
    return SplitName(host, int(port) if colon else None, is_address=is_address(host))


def is_address(host: str) -> bool:
    """Whether a host (without port or brackets) is an IP literal."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
