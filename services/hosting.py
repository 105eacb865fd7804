"""One process: some services side by side, their listeners, and the order in which they begin and end.

`tessera serve` hosts all services, `tessera run` one of them.
"""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute

from services.listening import Closing, HttpServers, bind, close, urls_of
from tessera.clock import Clock
from tessera.config import Listener, Settings
from tessera.garbage_collector import settle_garbage_collector
from tessera.http.app import MatrixApp, create_app
from tessera.ids import IdSource
from tessera.placement_following import PlacementFollower
from tessera.service import Service, ServiceOpener, Surroundings
from tessera.storage.database import DatabaseUnavailable
from tessera.telemetry import ReadinessCheck, RequestMetrics, observability_routes
from tessera.tracing import tracing_to

log = structlog.get_logger(__name__)

Ready = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Hosted:
    """Services that run."""

    services: Sequence[Service]
    observing: Mapping[str, Sequence[BaseRoute]]
    state: Mapping[str, object]
    ids: IdSource
    metrics: RequestMetrics
    closing: Closing

    async def drain(self) -> None:
        """Answer who waits and give away what others can go on with; /ready says no from now on."""
        self.closing.is_closing = True
        for service in self.services:
            try:
                await service.drain()
            except Exception:  # whatever it was: what could not be given away is taken when this process is gone
                log.exception("not drained")


@asynccontextmanager
async def hosting(
    openers: Iterable[ServiceOpener],
    around: Surroundings,
    checks: Mapping[str, ReadinessCheck],
    degraded: Mapping[str, ReadinessCheck],
) -> AsyncIterator[Hosted]:
    """Start services in order, and end them in the opposite order; one that fails ends the block with its exception.

    Args:
        checks: what /ready asks beside the stores and what the services name.
        degraded: what /ready tells of, though the process is ready without it.
    """
    registry = CollectorRegistry()
    closing = Closing()
    telemetry = around.settings.tessera.telemetry
    async with AsyncExitStack() as stack:
        stack.enter_context(tracing_to(telemetry.otlp_endpoint, telemetry.sample_ratio, around.name))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks: list[asyncio.Task[None]] = []
        stack.callback(lambda: [task.cancel() for task in tasks])
        stack.push_async_callback(_flush, around)
        tasks.append(group.create_task(around.last_seen.run()))
        for database in {id(one): one for one in (around.accounts, *around.shards.databases.values())}.values():
            tasks.append(group.create_task(database.watch()))
        if around.is_shared or len(around.shards.names) > 1:
            follower = PlacementFollower(around.accounts, around.shards, around.clock)
            tasks.append(group.create_task(follower.run()))
            await follower.has_looked.wait()
        services: list[Service] = []
        for opener in openers:
            service = await stack.enter_async_context(opener(around))
            services.append(service)
            tasks.extend(group.create_task(background()) for background in service.background)
        for service in services:
            await service.wait_started()
        asked, optional = _store_checks(around)
        asked |= checks
        optional |= degraded
        for service in services:
            asked |= service.checks
        health, ready, metrics = observability_routes(
            registry, asked, degraded=optional, is_closing=lambda: closing.is_closing
        )
        state: dict[str, object] = {"authenticator": around.authenticator}
        if around.federation is not None:
            state["peers"] = around.federation.peers
        for service in services:
            state |= service.state
        yield Hosted(
            services,
            {"metrics": [metrics], "health": [health, ready]},
            state,
            around.ids,
            RequestMetrics(registry),
            closing,
        )


def _store_checks(around: Surroundings) -> tuple[dict[str, ReadinessCheck], dict[str, ReadinessCheck]]:
    """What must answer, and what should: of several shards one may be away, and the rooms of the others go on."""
    shards: dict[str, ReadinessCheck] = {f"shard {name}": db.ping for name, db in around.shards.databases.items()}
    if len(shards) == 1:
        return {"accounts": around.accounts.ping, **shards}, {}

    async def any_shard() -> None:
        answers = await asyncio.gather(*(check() for check in shards.values()), return_exceptions=True)
        if all(answers):
            raise DatabaseUnavailable("no shard answers")

    return {"accounts": around.accounts.ping, "any shard": any_shard}, shards


async def _flush(around: Surroundings) -> None:
    try:
        await around.last_seen.flush()
    except DatabaseUnavailable as error:
        log.warning("last seen not written", error=str(error))


def make_app(hosted: Hosted, listener: Listener) -> MatrixApp:
    """The application of one listener: what its resources name."""
    names = sorted(listener.resource_names())
    routes: list[BaseRoute] = []
    routers: list[APIRouter] = []
    for service in hosted.services:
        for name in names:
            routes += service.routes.get(name, ())
            routers += service.routers.get(name, ())
    for name in names:
        routes += hosted.observing.get(name, ())
    return create_app(routes=routes, routers=routers, state=hosted.state, ids=hosted.ids, metrics=hosted.metrics)


class StopSignals:
    """SIGTERM and SIGINT: the first one asks for an orderly end."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    async def wait(self) -> None:
        """Until one came."""
        await self._stopping.wait()


@asynccontextmanager
async def bound_listeners(listeners: Sequence[Listener]) -> AsyncIterator[list[list[socket.socket]]]:
    """The sockets of each listener. Raises CannotStart."""
    with_sockets: list[list[socket.socket]] = []
    try:
        for listener in listeners:
            with_sockets.append(bind(listener))
        yield with_sockets
    finally:
        for listener, bound in zip(listeners, with_sockets, strict=False):
            close(listener, bound)


async def answer_requests(
    hosted: Hosted,
    settings: Settings,
    listeners: Sequence[Listener],
    sockets: Sequence[Sequence[socket.socket]],
    *,
    clock: Clock,
    signals: StopSignals,
    ready: Ready,
) -> None:
    """Listen until a signal comes, then drain: /ready says no, whoever waits is answered, the listeners close."""
    servers = HttpServers(settings)
    for listener, bound in zip(listeners, sockets, strict=True):
        await servers.start(hosted.closing.around(make_app(hosted, listener)), listener, bound)
    settle_garbage_collector()
    ready([url for listener, bound in zip(listeners, sockets, strict=True) for url in urls_of(listener, bound)])
    await signals.wait()
    log.info("draining")
    hosted.closing.is_closing = True
    await clock.sleep(settings.tessera.drain_notice_seconds)
    try:
        async with asyncio.timeout(settings.tessera.drain_seconds):
            await hosted.drain()
    except TimeoutError:
        log.warning("not drained in time")
    await servers.stop()
