"""Where a server name is answered.

Spec: S-S API §Server discovery.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matrixcore.identifiers import ServerName
from tessera.bounded_cache import BoundedCache
from tessera.clock import Clock
from tessera.federation.dns import Dns, DnsFailed, ServiceRecord
from tessera.federation.errors import PeerUnreachable
from tessera.federation.server_names import SplitName, split_server_name
from tessera.federation.well_known import WellKnown

DEFAULT_PORT = 8448
SERVICES = ("_matrix-fed._tcp.", "_matrix._tcp.")
MAX_NAMES = 20_000
SRV_MIN_SECONDS, SRV_MAX_SECONDS = 60.0, 3_600.0
NO_SRV_SECONDS = 300.0
DNS_TROUBLE_SECONDS = 30.0
MAX_TARGETS = 4  # that one request tries


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how to connect.

    Attributes:
        host: a name to be resolved to addresses, or an address (IPv6 without brackets).
        host_header: what stands in `Host`.
        tls_name: what the certificate must be for: a name or an address.
    """

    host: str
    port: int
    host_header: str
    tls_name: str


class Discovery:
    """Finds servers, and remembers where they were.

    Args:
        dns: whom to ask; called when there is something to ask.
        randomness: a number in [0, 1), for the weights of SRV records.
    """

    def __init__(
        self, well_known: WellKnown, dns: Callable[[], Dns], clock: Clock, randomness: Callable[[], float]
    ) -> None:
        self._well_known = well_known
        self._dns = dns
        self._clock = clock
        self._randomness = randomness
        self._services: BoundedCache[str, tuple[float, list[ServiceRecord]]] = BoundedCache(MAX_NAMES)

    async def find(self, server: ServerName) -> list[Target]:
        """Where a server is to be looked for, the best place first; at least one place.

        Raises:
            PeerUnreachable: it says itself that it is nowhere.
        """
        name = split_server_name(server)
        if name.is_address or name.port is not None:  # steps 1 and 2
            return [Target(name.host, name.port or DEFAULT_PORT, server, name.host)]
        delegated = await self._well_known.find(server)  # step 3
        if delegated is None:
            return await self._by_services(name)  # steps 4 to 6
        name = split_server_name(delegated)
        if name.is_address or name.port is not None:  # steps 3.1 and 3.2
            return [Target(name.host, name.port or DEFAULT_PORT, delegated, name.host)]
        return await self._by_services(name)  # steps 3.3 to 3.5

    async def _by_services(self, name: SplitName) -> list[Target]:
        for prefix in SERVICES:
            records = await self._find_services(prefix + name.host)
            if records:
                chosen = [one for one in in_order(records, self._randomness) if one.target.rstrip(".")]
                if not chosen:
                    raise PeerUnreachable(f"{name.host} says that it serves no federation")
                return [Target(one.target.rstrip("."), one.port, name.host, name.host) for one in chosen[:MAX_TARGETS]]
        return [Target(name.host, DEFAULT_PORT, name.host, name.host)]

    async def _find_services(self, name: str) -> list[ServiceRecord]:
        now = self._clock.monotonic()
        known = self._services.get(name)
        if known is not None and now < known[0]:
            return known[1]
        try:
            records = await self._dns().find_services(name)
        except DnsFailed:
            # As good as none, and soon asked again.
            records, keep = [], DNS_TROUBLE_SECONDS
        else:
            ttl = min((record.ttl_seconds for record in records), default=0)
            keep = min(max(float(ttl), SRV_MIN_SECONDS), SRV_MAX_SECONDS) if records else NO_SRV_SECONDS
        self._services[name] = (now + keep, records)
        return records


def in_order(records: Sequence[ServiceRecord], randomness: Callable[[], float]) -> list[ServiceRecord]:
    """The records by priority, and within one at random by weight. Spec: RFC 2782."""
    ordered: list[ServiceRecord] = []
    for priority in sorted({record.priority for record in records}):
        # Those without weight stand first, so that they have their small chance.
        left = sorted((one for one in records if one.priority == priority), key=lambda one: one.weight)
        while left:
            drawn = randomness() * sum(one.weight for one in left)
            for one in left:
                drawn -= one.weight
                if drawn <= 0:
                    break
            ordered.append(one)
            left.remove(one)
    return ordered
