"""What a service is given, and what it gives: the same for `tessera serve` and `tessera run <service>`.

Each service has a `main.py` with one async context manager that takes `Surroundings` and yields a `Service`. Only the
main modules see the surroundings whole; everything below them gets the few things that it needs.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.routing import BaseRoute

from matrixcore.signing import SigningKey
from tessera.bus import CommandBus, RecordBus
from tessera.clock import Clock
from tessera.config import Settings
from tessera.fanout import Fanout
from tessera.http.limits import RateLimits
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.telemetry import ReadinessCheck
from tessera.token_authenticator import TokenAuthenticator

if TYPE_CHECKING:
    from tessera.federation.opening import Federation


class CannotStart(Exception):
    """The process cannot start or go on; the text says why in one line."""


Background = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a process has, whatever runs in it.

    Attributes:
        name: of the process, kept over restarts; no two living ones have the same.
        is_shared: whether other processes work on the same database, so that work is divided by leases.
        accounts: the account store.
        shards: the room databases.
        commands, records: the topics.
        federation: None in a process whose service has nothing to do with peers.
    """

    settings: Settings
    name: str
    is_shared: bool
    clock: Clock
    ids: IdSource
    accounts: Database
    shards: RoomShards
    commands: CommandBus
    records: RecordBus
    fanout: Fanout
    limits: RateLimits
    last_seen: LastSeenRecorder
    authenticator: TokenAuthenticator
    signing_key: SigningKey
    federation: "Federation | None" = None

    def require_federation(self) -> "Federation":
        """What a service that talks with peers is given."""
        assert self.federation is not None, "the process was not told that this service talks with peers"
        return self.federation


async def _nothing() -> None:
    """Nothing is to be waited for."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service that is ready to run.

    Attributes:
        routes: plain routes by the resource that a listener names.
        routers: FastAPI routers by resource.
        state: what the handlers find at `request.app.state`.
        checks: what /ready asks besides the stores and topics that every process has.
        background: run until the process ends; one that raises ends it.
        wait_started: until the background work is so far that requests can be answered.
        drain: before the process stops to listen: answer who waits, give away what others can go on with.
    """

    routes: Mapping[str, Sequence[BaseRoute]] = field(default_factory=dict)
    routers: Mapping[str, Sequence[APIRouter]] = field(default_factory=dict)
    state: Mapping[str, object] = field(default_factory=dict)
    checks: Mapping[str, ReadinessCheck] = field(default_factory=dict)
    background: Sequence[Background] = ()
    wait_started: Callable[[], Awaitable[None]] = _nothing
    drain: Callable[[], Awaitable[None]] = _nothing


ServiceOpener = Callable[[Surroundings], AbstractAsyncContextManager[Service]]
"""A main module's context manager: entered before the background work begins, left while it still runs."""
