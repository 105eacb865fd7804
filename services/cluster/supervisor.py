"""Starts the processes of a small cluster and the proxy in front of them, keeps them alive, and ends them in order."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from aiohttp import web

from services.cluster.nginx import nginx_command, nginx_config
from services.cluster.nginx_process import NginxProcess
from services.cluster.plan import PlannedProcess
from services.cluster.process import ChildProcess
from services.cluster.proxy import Backend, Proxy, make_server, open_session, tls_context
from services.hosting import StopSignals, bound_listeners
from services.listening import urls_of
from tessera.clock import Clock
from tessera.config import Listener, Settings
from tessera.service import CannotStart

log = structlog.get_logger(__name__)

START_SECONDS = 60.0
FINISH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        urls: of the proxy.
        children: in the order of their start.
    """

    urls: Sequence[str]
    children: Sequence[ChildProcess]

    def describe(self) -> dict[str, Any]:
        """What a harness wants to know, for --info-file."""
        return {
            "pid": os.getpid(),
            "urls": list(self.urls),
            "processes": [
                {
                    "name": child.planned.name,
                    "service": child.planned.service,
                    "pid": child.pid,
                    "url": child.planned.url,
                    "state": child.state.value,
                    "restarts": child.restarts,
                    "log": str(child.planned.log),
                }
                for child in self.children
            ],
        }


@asynccontextmanager
async def running_cluster(
    settings: Settings,
    planned: Sequence[PlannedProcess],
    environment: Mapping[str, str],
    clock: Clock,
    *,
    nginx: str | None,
    folder: Path,
    on_change: Callable[[Cluster], None],
) -> AsyncIterator[Cluster]:
    """Run until the block ends.

    Args:
        environment: of every process.
        nginx: the program, if it is to be the proxy.
        folder: for what nginx keeps.
        on_change: told whenever a process begins, becomes ready or ends.

    Raises:
        CannotStart: a port is taken, or a process does not become ready.
    """
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(open_session())
        children: list[ChildProcess] = []
        cluster = Cluster([], children)
        for one in planned:
            child = ChildProcess(
                one,
                environment,
                clock,
                drain_seconds=settings.tessera.drain_seconds + settings.tessera.drain_notice_seconds,
                on_change=lambda _child: on_change(cluster),
            )
            children.append(child)
        # The port is taken first: who has it already is told before anything is started.
        proxy = await stack.enter_async_context(_open_proxy(settings, children, http, nginx, folder, clock))
        stack.push_async_callback(proxy.finish)
        tasks: list[asyncio.Task[None]] = []
        stack.push_async_callback(_stop, children, tasks)
        for stage in sorted({one.stage for one in planned}):
            starting = [child for child in children if child.planned.stage == stage]
            tasks += [asyncio.create_task(child.run(http), name=child.planned.name) for child in starting]
            await _until_ready(starting)
        cluster = Cluster(await proxy.start(), children)
        stack.push_async_callback(proxy.close)
        on_change(cluster)
        yield cluster


async def _until_ready(children: Sequence[ChildProcess]) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            await asyncio.gather(*(_ready_or_dead(child) for child in children))
    except TimeoutError:
        slow = ", ".join(child.planned.name for child in children if not child.is_ready)
        log_of_first = next(child.planned.log for child in children if not child.is_ready)
        raise CannotStart(f"not ready after {START_SECONDS:.0f} s: {slow}; see {log_of_first}") from None


async def _ready_or_dead(child: ChildProcess) -> None:
    if not await child.wait_ready():
        raise CannotStart(f"{child.planned.name} ended before it was ready: {last_line(child.planned.log)}")


def last_line(path: Path) -> str:
    """What a process said last."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"see {path}"


async def _stop(children: Sequence[ChildProcess], tasks: Sequence[asyncio.Task[None]]) -> None:
    """End the stages in the opposite order; the processes of one side by side."""
    for stage in sorted({child.planned.stage for child in children}, reverse=True):
        await asyncio.gather(*(child.stop() for child in children if child.planned.stage == stage))
    await asyncio.gather(*tasks)


class _OwnProxy:
    """The proxy in this process."""

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[Listener],
        sockets: Sequence[Any],
        children: Sequence[ChildProcess],
        http: aiohttp.ClientSession,
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._sockets = sockets
        self._children = children
        self._http = http
        self._runners: list[web.ServerRunner] = []
        self._sites: list[web.SockSite] = []

    async def start(self) -> list[str]:
        """Answer requests; where."""
        urls: list[str] = []
        for listener, bound in zip(self._listeners, self._sockets, strict=True):
            backends = [
                Backend(
                    child.planned.name,
                    child.planned.service,
                    child.planned.url,
                    lambda child=child: child.is_ready,  # type: ignore[misc]  # mypy infers no lambda with a default
                    child.suspect,
                )
                for child in self._children
            ]
            scheme = "https" if listener.tls else "http"
            runner = web.ServerRunner(
                make_server(Proxy(backends, self._http, scheme=scheme)), shutdown_timeout=FINISH_SECONDS
            )
            await runner.setup()
            self._runners.append(runner)
            context = None
            if listener.tls:
                certificate, key = self._settings.tls_certificate_path, self._settings.tls_private_key_path
                context = tls_context(str(certificate), str(key))
            for one in bound:
                site = web.SockSite(runner, one, ssl_context=context)
                await site.start()
                self._sites.append(site)
            urls += urls_of(listener, bound)
        return urls

    async def close(self) -> None:
        """Accept nothing more; what was begun goes on."""
        for site in self._sites:
            await site.stop()

    async def finish(self) -> None:
        """Cut off what is left."""
        for runner in self._runners:
            await runner.cleanup()


@asynccontextmanager
async def _open_proxy(
    settings: Settings,
    children: Sequence[ChildProcess],
    http: aiohttp.ClientSession,
    nginx: str | None,
    folder: Path,
    clock: Clock,
) -> "AsyncIterator[_OwnProxy | NginxProcess]":
    listeners = settings.listeners
    async with bound_listeners(listeners) as sockets:
        if nginx is None:
            yield _OwnProxy(settings, listeners, sockets, children, http)
            return
    config = nginx_config(settings, listeners, [child.planned for child in children])
    yield NginxProcess(nginx_command(nginx, folder, config), listeners, clock)


async def supervise(
    settings: Settings,
    planned: Sequence[PlannedProcess],
    environment: Mapping[str, str],
    clock: Clock,
    *,
    nginx: str | None,
    folder: Path,
    info_file: Path | None,
    ready: Callable[[Cluster], None],
) -> None:
    """Run a cluster until SIGTERM or SIGINT; `info_file` always says what runs."""
    stopping = asyncio.create_task(StopSignals().wait())
    is_ready = False

    def on_change(cluster: Cluster) -> None:
        if info_file is not None and cluster.urls:
            _write(info_file, json.dumps(cluster.describe(), indent=2))

    async def run() -> None:
        async with running_cluster(
            settings, planned, environment, clock, nginx=nginx, folder=folder, on_change=on_change
        ) as cluster:
            nonlocal is_ready
            is_ready = True
            ready(cluster)
            await stopping
            log.info("ending")

    running = asyncio.create_task(run())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not is_ready:
        running.cancel()  # it has not even begun
    try:
        await running
    except asyncio.CancelledError:
        log.info("ended before it was ready")


def _write(path: Path, text: str) -> None:
    """All of it or nothing: others read while it is written."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)
