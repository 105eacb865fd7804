"""Figures for Prometheus, and the endpoints that supervisors ask."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tessera.figures import Spread, Spreads, Tallies, Tally
from tessera.http.replies import json_reply

log = structlog.get_logger(__name__)

READINESS_TIMEOUT_SECONDS = 3.0

# From a cached answer to a parked long-poll.
REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# From a commit of a few rows to one that waits for a slow disk.
COMMIT_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2.0, 10.0)

ReadinessCheck = Callable[[], Awaitable[None]]
"""Returns if a dependency answers, raises otherwise; the exception's text goes into the log alone."""


class RequestMetrics:
    """Counts and times requests by operation, labels resolved once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Tallies(
            "tessera_http_requests_total", "Requests answered", ("operation", "method", "status"), registry=registry
        )
        self._seconds = Spreads(
            "tessera_http_request_seconds",
            "Time from the request's head to the answer's end",
            ("operation",),
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._kinds: dict[tuple[str, str, int], tuple[Tally, Spread]] = {}

    def observe(self, operation: str, method: str, status: int, seconds: float) -> None:
        """Note one answer. `operation` is a handler's name, never a part of a path."""
        key = (operation, method, status)
        kind = self._kinds.get(key)
        if kind is None:
            kind = (self._requests.labels(operation, method, str(status)), self._seconds.labels(operation))
            self._kinds[key] = kind
        kind[0].inc()
        kind[1].observe(seconds)


def observability_routes(
    registry: CollectorRegistry,
    readiness: Mapping[str, ReadinessCheck],
    *,
    degraded: Mapping[str, ReadinessCheck] | None = None,
    is_closing: Callable[[], bool] = lambda: False,
) -> list[Route]:
    """/health (the process lives), /ready (what it depends on answers) and /metrics.

    Args:
        readiness: by the name of the dependency; all are asked side by side, for three seconds at most.
        degraded: dependencies without which the process works, though worse; /ready tells of them and says yes.
        is_closing: whether the process is about to end and wants no more requests.
    """
    optional = degraded or {}

    async def health(_request: Request) -> Response:
        return json_reply({"status": "ok"})

    async def ready(_request: Request) -> Response:
        everything = {**optional, **readiness}
        verdicts = await asyncio.gather(*(_is_ready(name, check) for name, check in everything.items()))
        checks = dict(zip(everything, verdicts, strict=True))
        closing = is_closing()
        is_ready = not closing and all(checks[name] for name in readiness)
        answer: dict[str, object] = {"ready": is_ready, "checks": checks}
        if closing:
            answer["closing"] = True
        if missing := [name for name in optional if not checks[name]]:
            answer["degraded"] = missing
        return json_reply(answer, 200 if is_ready else 503)

    async def metrics(_request: Request) -> Response:
        # The process's own figures and those of modules are in the library's default registry.
        return Response(generate_latest(registry) + generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


async def _is_ready(name: str, check: ReadinessCheck) -> bool:
    try:
        async with asyncio.timeout(READINESS_TIMEOUT_SECONDS):
            await check()
    except Exception as error:  # whatever a dependency does, the answer is that it is not ready
        log.warning("not ready", dependency=name, error=str(error) or type(error).__name__)
        return False
    return True
