"""One service of a cluster in a process of its own, on Kafka, Redis and PostgreSQL (DESIGN section 10)."""

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import structlog

from services.hosting import Ready, StopSignals, answer_requests, bound_listeners, hosting
from services.stores import Stores, reach_stores
from tessera.bus import BusUnavailable, CommandBus, RecordBus
from tessera.bus.kafka import TopicsDisagree, open_buses
from tessera.clock import SystemClock
from tessera.commands import Command
from tessera.config import Listener, Settings, load_appservices, load_signing_keys
from tessera.config.listeners import Resource
from tessera.config.services import ServiceName
from tessera.fanout.redis import open_fanout, open_rate_limits
from tessera.http.limits import Rate
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.records import LogRecord
from tessera.service import CannotStart, ServiceOpener, Surroundings
from tessera.storage.done_offsets import ShardDoneOffsets
from tessera.telemetry import ReadinessCheck
from tessera.token_authenticator import TokenAuthenticator

if TYPE_CHECKING:
    from tessera.federation.opening import Federation

log = structlog.get_logger(__name__)


# The main modules are imported by name: a process carries its own service only, and the others' memory is spared.
@dataclass(frozen=True, slots=True)
class _Kind:
    """How a service is opened, and what it is without Kafka.

    Attributes:
        opener: the module and the name of its context manager.
        uses_topics: whether it sends or reads anything there.
        asks_peers: whether it has to do with other servers.
        works_without: whether it answers most requests all the same, so that it stays ready.
    """

    opener: str
    uses_topics: bool = False
    asks_peers: bool = False
    works_without: bool = True

    def load(self) -> ServiceOpener:
        """Import the main module."""
        module, _, name = self.opener.partition(":")
        opener: ServiceOpener = getattr(import_module(module), name)
        return opener


SERVICES: Mapping[ServiceName, _Kind] = {
    "gateway": _Kind("services.gateway.main:open_gateway", uses_topics=True, asks_peers=True),
    "rooms": _Kind("services.rooms.main:open_rooms", uses_topics=True, works_without=False),
    "sync": _Kind("services.sync.main:open_sync"),
    "media": _Kind("services.media.main:open_media", asks_peers=True),
    "federation-in": _Kind("services.federation_in.main:open_federation_in", uses_topics=True, asks_peers=True),
    "federation-out": _Kind(
        "services.federation_out.main:open_federation_out", uses_topics=True, asks_peers=True, works_without=False
    ),
    "projector": _Kind("services.projector.main:open_projector", uses_topics=True, works_without=False),
    "push": _Kind("services.push.main:open_push", uses_topics=True, works_without=False),
    "appservice": _Kind("services.appservice.main:open_appservice", uses_topics=True, works_without=False),
}


async def run_service(
    settings: Settings, service: ServiceName, *, listeners: Sequence[Listener], name: str, ready: Ready
) -> None:
    """Run one service until SIGTERM or SIGINT.

    Args:
        listeners: `listeners_of`.
        name: of this process; kept over restarts, and no other living one has it.
        ready: told the URLs once requests are answered.

    Raises:
        CannotStart: and others with a one-line text, when it cannot start.
    """
    clock, ids = SystemClock(), IdSource()
    signals = StopSignals()
    kind = SERVICES[service]
    if settings.tessera.redis is None:
        raise CannotStart("separate processes wake each other over Redis: set tessera.redis.url")
    async with AsyncExitStack() as stack:
        sockets = await stack.enter_async_context(bound_listeners(listeners))
        stores = await stack.enter_async_context(reach_stores(settings, name))
        topics = await stack.enter_async_context(_open_topics(settings, kind, stores, clock, name))
        fanout = await stack.enter_async_context(open_fanout(settings.tessera.redis, clock, ids))

        async def check_fanout() -> None:
            if not fanout.is_healthy:
                raise ConnectionError("no hints come from Redis")

        rates = {name: Rate(limit.per_second, limit.burst_count) for name, limit in settings.rate_limits().items()}
        limits = await stack.enter_async_context(open_rate_limits(fanout, rates, clock))
        last_seen = LastSeenRecorder(stores.accounts, clock)
        authenticator = TokenAuthenticator(stores.accounts, clock, last_seen, load_appservices(settings))
        await authenticator.start(fanout)
        stack.push_async_callback(authenticator.stop)
        signing_keys = load_signing_keys(settings)
        federation: Federation | None = None
        if kind.asks_peers:
            from services.federation import opened_federation

            federation = await stack.enter_async_context(
                opened_federation(settings, signing_keys, stores.accounts, clock, ids)
            )
        around = Surroundings(
            settings=settings,
            name=name,
            is_shared=True,
            clock=clock,
            ids=ids,
            accounts=stores.accounts,
            shards=stores.shards,
            commands=topics.commands,
            records=topics.records,
            fanout=fanout,
            limits=limits,
            last_seen=last_seen,
            authenticator=authenticator,
            signing_key=signing_keys[0],
            federation=federation,
        )
        checks: dict[str, ReadinessCheck] = dict(topics.checks)
        degraded: dict[str, ReadinessCheck] = {"redis": check_fanout}
        if kind.works_without:
            checks, degraded = {}, degraded | checks
        hosted = await stack.enter_async_context(hosting([kind.load()], around, checks, degraded))
        await answer_requests(hosted, settings, listeners, sockets, clock=clock, signals=signals, ready=ready)


def listeners_of(
    settings: Settings, service: ServiceName, port: int | None, addresses: Sequence[str]
) -> tuple[Listener, ...]:
    """Where a process of a service listens: what the command line says, else the configuration.

    Raises:
        CannotStart: neither says it.
    """
    if port is not None:
        # Of which each service has its own.
        names = Resource(names=("client", "federation", "media", "metrics", "health"))
        return (Listener(port=port, bind_addresses=tuple(addresses), x_forwarded=True, resources=(names,)),)
    configured = settings.tessera.services.get(service)
    if configured is None or not configured.listeners:
        raise CannotStart(f"say where to listen: --port, or tessera.services.{service}.listeners")
    return configured.listeners


def instance_name(settings: Settings, given: str | None) -> str:
    """The name of this process: the command line's, the configuration's, the host's."""
    return given or settings.tessera.instance_name or socket.gethostname()


@dataclass(frozen=True, slots=True)
class _Topics:
    commands: CommandBus
    records: RecordBus
    checks: Mapping[str, ReadinessCheck]


@asynccontextmanager
async def _open_topics(
    settings: Settings, kind: _Kind, stores: Stores, clock: SystemClock, name: str
) -> AsyncIterator[_Topics]:
    if not kind.uses_topics:
        yield _Topics(_NoTopic(), _NoTopic(), {})
        return
    if settings.tessera.kafka is None:
        raise CannotStart("separate processes talk over Kafka: set tessera.kafka.bootstrap_servers")
    opening = open_buses(
        settings.tessera.kafka,
        partitions=settings.tessera.partitions,
        read_done=ShardDoneOffsets(stores.shards),
        clock=clock,
        client_id=f"tessera-{name}",
    )
    async with AsyncExitStack() as stack:
        try:
            buses = await stack.enter_async_context(opening)
        except TopicsDisagree as error:
            raise CannotStart(str(error)) from error
        yield _Topics(buses.commands, buses.records, {"kafka": buses.ping})


class _NoTopic:
    """The topics of a service that uses none: it needs no connection to Kafka."""

    async def send(self, command: Command) -> None:
        raise BusUnavailable("this process uses no topic")

    async def find_ends(self, partitions: Sequence[int]) -> NoReturn:
        raise BusUnavailable("this process uses no topic")

    async def announce(self, partition: int, records: Sequence[LogRecord]) -> None:
        raise BusUnavailable("this process uses no topic")

    async def open_reader(self) -> NoReturn:
        raise BusUnavailable("this process uses no topic")
