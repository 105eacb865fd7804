"""The whole homeserver in one process: every service on a local bus and fan-out (DESIGN section 7).

This is the one place that knows all services; they do not know each other.
"""

import asyncio
import errno
import gc
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import uvicorn
from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute

from matrixcore.identifiers import ServerName
from services.gateway import departures, profile_propagation
from services.gateway.app import build_gateway, gateway_routers, gateway_routes
from services.gateway.passwords import Passwords
from services.media.dependencies import MediaDeps
from services.media.main import build_media
from services.media.routes import media_routes
from services.projector import directory, memberships
from services.projector.consumer import RecordConsumer, Step
from services.rooms.service import RoomWriter
from services.sync.service import SyncService
from tessera.bus import LocalCommandBus, LocalRecordBus
from tessera.clock import Clock, SystemClock
from tessera.config import Listener, Settings, load_signing_keys
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.fanout import LocalFanout
from tessera.http.app import MatrixApp, create_app
from tessera.http.limits import LocalRateLimits, Rate
from tessera.http.server_protocol import BoundedHttpProtocol
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.room_commands import RoomCommands
from tessera.storage import partitions as partition_rows
from tessera.storage.database import Database
from tessera.storage.migrations import Tree, migrate
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.placement import settle_placement
from tessera.storage.shards import RoomShards
from tessera.telemetry import RequestMetrics, observability_routes
from tessera.token_authenticator import TokenAuthenticator

DRAIN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
Progress = Callable[[str], None]


class ServeError(Exception):
    """The server cannot start; the text says why in one line."""


@dataclass(frozen=True, slots=True)
class Services:
    """What runs, by the resource that a listener names."""

    routes: Mapping[str, Sequence[BaseRoute]]
    routers: Mapping[str, Sequence[APIRouter]]
    state: Mapping[str, object]
    ids: IdSource
    metrics: RequestMetrics
    sync: SyncService


@dataclass(frozen=True, slots=True)
class Stores:
    """The databases of a running server."""

    accounts: Database
    shards: RoomShards


async def serve(settings: Settings, *, progress: Progress, ready: Callable[[Sequence[str]], None]) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        progress: told what is being done before the first request can be answered.
        ready: told the URLs when it can.

    Raises:
        ServeError: and others with a one-line text, when it cannot start.
    """
    clock = SystemClock()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    sockets = [bind(listener) for listener in settings.listeners]
    async with AsyncExitStack() as stack:
        for bound in chain.from_iterable(sockets):
            stack.callback(bound.close)
        stores = await stack.enter_async_context(open_stores(settings, progress=progress))
        services = await stack.enter_async_context(run_services(settings, stores, clock))
        servers = [_http_server(make_app(services, listener), settings, listener) for listener in settings.listeners]
        running = [
            asyncio.create_task(server.serve(sockets=bound)) for server, bound in zip(servers, sockets, strict=True)
        ]
        await _until_started(servers, running)
        _settle_garbage_collector()
        ready(
            [
                url
                for listener, bound in zip(settings.listeners, sockets, strict=True)
                for url in _urls_of(listener, bound)
            ]
        )
        await stopping.wait()
        # Parked long-polls are answered first: the servers wait for every request.
        await services.sync.stop()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*running)


@asynccontextmanager
async def open_stores(settings: Settings, *, progress: Progress) -> AsyncIterator[Stores]:
    """Start or reach the databases, bring their schemas up to date, and open the pools."""
    async with AsyncExitStack() as stack:
        accounts_dsn = settings.accounts_dsn
        if accounts_dsn is None:
            progress(f"starting PostgreSQL in {settings.data_dir / 'postgres'}")
            postgres = EmbeddedPostgres(settings.data_dir / "postgres")
            await postgres.start()
            stack.push_async_callback(postgres.stop)
            accounts_dsn = postgres.dsn()
        shard_dsns = settings.shard_dsns(accounts_dsn)
        await migrate(accounts_dsn, Tree.ACCOUNTS, progress=progress)
        for dsn in dict.fromkeys(shard_dsns.values()):
            await migrate(dsn, Tree.ROOMS, progress=progress)
        pool = settings.pool
        databases: dict[str, Database] = {}
        for dsn in dict.fromkeys([accounts_dsn, *shard_dsns.values()]):
            database = await Database.connect(
                dsn, min_size=pool.min_size, max_size=pool.max_size, pgbouncer=settings.tessera.pgbouncer
            )
            stack.push_async_callback(database.close)
            databases[dsn] = database
        shards = {name: databases[dsn] for name, dsn in shard_dsns.items()}
        yield Stores(databases[accounts_dsn], await _settle_shards(settings, databases[accounts_dsn], shards))


async def _settle_shards(settings: Settings, accounts: Database, databases: dict[str, Database]) -> RoomShards:
    async with accounts.transaction() as tx:
        placement = await settle_placement(tx, settings.tessera.partitions, list(databases))
    for name, database in databases.items():
        async with database.transaction() as tx:
            await partition_rows.add_partitions(tx, [p for p, shard in placement.items() if shard == name])
    return RoomShards(databases, placement, settings.tessera.partitions)


@asynccontextmanager
async def run_services(settings: Settings, stores: Stores, clock: Clock) -> AsyncIterator[Services]:
    """Start every service, and stop them in order at the end; one that fails ends the block with its exception."""
    ids = IdSource()
    registry = CollectorRegistry()
    fanout = LocalFanout()
    command_bus, record_bus = LocalCommandBus(ids.token()), LocalRecordBus()
    accounts, shards = stores.accounts, stores.shards
    signing_key = load_signing_keys(settings)[0]
    rates = {name: Rate(limit.per_second, limit.burst_count) for name, limit in settings.rate_limits().items()}
    limits = LocalRateLimits(clock, rates)
    last_seen = LastSeenRecorder(accounts, clock)
    authenticator = TokenAuthenticator(accounts, clock, last_seen)
    commands = RoomCommands(command_bus, fanout, ShardOutcomes(shards))
    passwords = Passwords()
    gateway = build_gateway(
        settings=settings,
        clock=clock,
        ids=ids,
        accounts=accounts,
        shards=shards,
        fanout=fanout,
        commands=commands,
        limits=limits,
        last_seen=last_seen,
        authenticator=authenticator,
        signing_key=signing_key,
        passwords=passwords,
    )
    media = _media(settings, accounts, clock, ids, limits)
    writer = RoomWriter(
        server_name=ServerName(settings.server_name),
        signing_key=signing_key,
        shards=shards,
        commands=command_bus,
        records=record_bus,
        fanout=fanout,
        clock=clock,
        ids=ids,
    )
    sync = SyncService(
        accounts,
        shards,
        fanout,
        clock,
        instance=int.from_bytes(ids.random_bytes(4), "big"),
        presence_enabled=settings.presence.enabled,
        forget_device=authenticator.forget_device,
    )
    steps: dict[str, Step] = {
        memberships.CONSUMER: memberships.MembershipStep(fanout, ServerName(settings.server_name)),
        directory.CONSUMER: directory.DirectoryStep(shards),
    }
    consumers = [RecordConsumer(name, step, record_bus, accounts, shards, clock) for name, step in steps.items()]
    async with AsyncExitStack() as stack:
        stack.callback(passwords.close)
        stack.callback(media.close)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks: list[asyncio.Task[None]] = []
        stack.callback(lambda: [task.cancel() for task in tasks])
        await commands.start()
        stack.push_async_callback(commands.stop)
        # The writer stops last: whatever the others still submit gets its outcome.
        tasks.append(group.create_task(writer.run(), name="writer"))
        stack.push_async_callback(writer.stop)
        await sync.start()
        stack.push_async_callback(sync.stop)
        stack.push_async_callback(last_seen.flush)
        stack.push_async_callback(gateway.receipts.flush)
        running = [sync.run(), commands.poll_overdue(), last_seen.run(), gateway.receipts.run()]
        running.append(profile_propagation.run(accounts, gateway.propagate_profile, clock))
        running.append(departures.run(gateway.rooms, clock))
        running += [consumer.run() for consumer in consumers]
        tasks.extend(group.create_task(coroutine) for coroutine in running)
        await writer.wait_ready()
        checks = {"accounts": accounts.ping} | {f"shard {name}": db.ping for name, db in shards.databases.items()}
        health, ready, metrics = observability_routes(registry, checks)
        client = [*sync.routes, *gateway_routes()]
        yield Services(
            routes={"client": client, "media": media_routes(), "metrics": [metrics], "health": [health, ready]},
            routers={"client": list(gateway_routers())},
            state={"gateway": gateway, "media": media, "sync": sync, "authenticator": authenticator},
            ids=ids,
            metrics=RequestMetrics(registry),
            sync=sync,
        )


def _media(settings: Settings, accounts: Database, clock: Clock, ids: IdSource, limits: LocalRateLimits) -> MediaDeps:
    """The media service, whose directory is made by the way.

    Raises:
        ServeError: the directory cannot be made.
    """
    try:
        return build_media(settings, accounts, clock, ids, limits)
    except OSError as error:
        raise ServeError(f"media_store_path: {settings.media_directory} cannot be used: {error.strerror}") from error


def make_app(services: Services, listener: Listener) -> MatrixApp:
    """The application of one listener: what its resources name."""
    names = [name for name in services.routes if name in listener.resource_names()]
    return create_app(
        routes=[route for name in names for route in services.routes[name]],
        routers=[router for name in names for router in services.routers.get(name, ())],
        state=services.state,
        ids=services.ids,
        metrics=services.metrics,
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: `serve` has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http_server(app: MatrixApp, settings: Settings, listener: Listener) -> _Server:
    tls: dict[str, Path | None] = {}
    if listener.tls:
        tls = {"ssl_certfile": settings.tls_certificate_path, "ssl_keyfile": settings.tls_private_key_path}
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        loop="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=listener.x_forwarded,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        **tls,  # type: ignore[arg-type]
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ServeError(f"TLS: {settings.tls_certificate_path}, {settings.tls_private_key_path}: {error}") from error
    return _Server(config)


def bind(listener: Listener) -> list[socket.socket]:
    """The listener's sockets, taken before anything else is started.

    Raises:
        ServeError: an address or port cannot be had.
    """
    sockets: list[socket.socket] = []
    port = listener.port
    for address in listener.bind_addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            bound = socket.socket(family)
        except OSError:
            continue  # a machine without IPv6
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            bound.bind((address, port))
            bound.listen(BACKLOG)
        except OSError as error:
            bound.close()
            if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL and len(listener.bind_addresses) > 1:
                continue
            for other in sockets:
                other.close()
            raise ServeError(f"cannot listen on {_show(address, port)}: {error.strerror}") from error
        bound.setblocking(False)
        port = port or bound.getsockname()[1]  # one free port for all addresses
        sockets.append(bound)
    if not sockets:
        raise ServeError(f"cannot listen on any of {', '.join(listener.bind_addresses)}")
    return sockets


def _show(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _urls_of(listener: Listener, sockets: Sequence[socket.socket]) -> Iterator[str]:
    for bound in sockets:
        address, port = bound.getsockname()[:2]
        yield f"{'https' if listener.tls else 'http'}://{_show(address, port)}"


async def _until_started(servers: Sequence[_Server], tasks: Sequence[asyncio.Task[None]]) -> None:
    while not all(server.started for server in servers):
        if failed := [task for task in tasks if task.done()]:
            failed[0].result()
            raise ServeError("an HTTP server did not start")
        await asyncio.sleep(0.01)


def _settle_garbage_collector() -> None:
    """What start-up made stays for ever: never look at it again, and look at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
