"""The names of the metrics that the code defines: what rules and dashboards may ask for."""

import importlib
import pkgutil

import promql_parser
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric

import services
import tessera
from tessera.telemetry import RequestMetrics

# Prometheus's own; the process's and Python's figures of the client library are in the registry on Linux only.
FROM_ELSEWHERE = {
    "up",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
}
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def defined_metrics() -> set[str]:
    """The names of all series that a process of ours can have."""
    for package in (services, tessera):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith((".metrics", "_metrics")):
                importlib.import_module(module.name)
    requests = CollectorRegistry()
    RequestMetrics(requests)
    families = [*REGISTRY.collect(), *requests.collect()]
    return FROM_ELSEWHERE | {f"{family.name}{suffix}" for family in families for suffix in _suffixes_of(family)}


def _suffixes_of(family: Metric) -> tuple[str, ...]:
    return _SUFFIXES.get(family.type, ("",))


def metrics_of(expression: str) -> set[str]:
    """The names of the series that a PromQL expression asks for; raises ValueError if it is none."""
    names: set[str] = set()

    def visit(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None, "every selector names its metric"
            names.add(node.name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return names
