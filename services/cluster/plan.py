"""Which processes a small cluster has, and which of them a request is for."""

import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.config.services import ServiceName

ADDRESS = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many processes of each service."""

    gateways: int = 2
    writers: int = 3
    syncs: int = 2
    media: int = 1
    projectors: int = 1
    federation_ins: int = 1
    federation_outs: int = 1
    pushes: int = 1
    appservices: int = 0


@dataclass(frozen=True, slots=True)
class PlannedProcess:
    """A process to start.

    Attributes:
        name: kept over restarts, as is the port.
        stage: processes are started stage by stage and ended in the opposite order; one stage runs side by side.
    """

    name: str
    service: ServiceName
    port: int
    arguments: tuple[str, ...]
    log: Path
    stage: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{ADDRESS}:{self.port}"


# Who writes comes first and goes last: whatever the others still submit gets its outcome.
_STAGES: dict[ServiceName, int] = {
    "rooms": 0,
    "projector": 1,
    "sync": 2,
    "media": 2,
    "federation-in": 2,
    "federation-out": 1,
    "push": 1,
    "appservice": 1,
    "gateway": 2,
}


def plan_processes(config: Path, counts: Counts, ports: Sequence[int], logs: Path) -> list[PlannedProcess]:
    """The processes of a cluster, in the order in which they are started.

    Args:
        ports: as many free ones as there are processes.
        logs: the folder of their logs.
    """
    wanted: dict[ServiceName, int] = {
        "rooms": counts.writers,
        "projector": counts.projectors,
        "sync": counts.syncs,
        "media": counts.media,
        "federation-in": counts.federation_ins,
        "federation-out": counts.federation_outs,
        "push": counts.pushes,
        "appservice": counts.appservices,
        "gateway": counts.gateways,
    }
    names = [(service, f"{service}-{number}") for service, count in wanted.items() for number in range(1, count + 1)]
    planned: list[PlannedProcess] = []
    for (service, name), port in zip(names, ports, strict=True):
        command = (sys.executable, "-m", "services.cli", "run", service, "--config", str(config))
        place = ("--port", str(port), "--bind", ADDRESS, "--name", name)
        planned.append(PlannedProcess(name, service, port, (*command, *place), logs / f"{name}.log", _STAGES[service]))
    return planned


def count_of(counts: Counts) -> int:
    """How many processes there are in all."""
    serving = counts.gateways + counts.syncs + counts.media + counts.federation_ins
    return serving + counts.writers + counts.projectors + counts.federation_outs + counts.pushes + counts.appservices


def free_ports(count: int) -> list[int]:
    """Ports that nobody has right now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((ADDRESS, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


_CLIENT = "/_matrix/client/"
_PEERS = ("/_matrix/federation/", "/_matrix/key/")
_PEERS_MEDIA = "/_matrix/federation/v1/media/"
_SYNC_ENDPOINTS = frozenset({"sync", "keys/changes"})
_SLIDING_SYNC = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"  # the accepted form is v4/sync


def service_for(path: str) -> ServiceName:
    """Which service answers a path (without its query). Spec: C-S API §Syncing, §Content repository."""
    if path.startswith(_CLIENT):
        version, _, endpoint = path[len(_CLIENT) :].partition("/")
        if endpoint in _SYNC_ENDPOINTS or path == _SLIDING_SYNC:
            return "sync"
        if version == "v1" and endpoint.startswith("media/"):
            return "media"
        return "gateway"
    if path.startswith(_PEERS):
        return "media" if path.startswith(_PEERS_MEDIA) else "federation-in"
    return "media" if path.startswith("/_matrix/media/") else "gateway"


def routed_prefixes() -> Iterator[tuple[str, ServiceName]]:
    """The same as regular expressions, for a proxy that takes them."""
    yield r"^/_matrix/client/([^/]+/(sync|keys/changes)|unstable/org\.matrix\.simplified_msc3575/sync)$", "sync"
    yield r"^/_matrix/(media/|client/v1/media/|federation/v1/media/)", "media"
    yield r"^/_matrix/(federation|key)/", "federation-in"
