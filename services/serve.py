"""The whole homeserver in one process: every service on a local bus and fan-out (DESIGN section 7)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.appservice.main import open_appservice
from services.federation import opened_federation
from services.federation_in.main import open_federation_in
from services.federation_out.main import open_federation_out
from services.gateway.main import open_gateway
from services.hosting import Hosted, Ready, StopSignals, answer_requests, bound_listeners, hosting
from services.media.main import open_media
from services.projector.main import open_projector
from services.push.main import open_push
from services.rooms.main import open_rooms
from services.stores import Progress, Stores, open_stores
from services.sync.main import open_sync
from tessera.bus import LocalCommandBus, LocalRecordBus, RecordBus
from tessera.clock import Clock, SystemClock
from tessera.config import Settings, load_appservices, load_signing_keys
from tessera.fanout import LocalFanout
from tessera.http.limits import LocalRateLimits, Rate
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.service import Surroundings
from tessera.token_authenticator import TokenAuthenticator

# The writer is the first to begin and the last to end: whatever the others still submit gets its outcome.
ALL_SERVICES = (
    open_rooms,
    open_projector,
    open_push,
    open_appservice,
    open_sync,
    open_media,
    open_federation_out,
    open_federation_in,
    open_gateway,
)


async def serve(settings: Settings, *, progress: Progress, ready: Ready) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        progress: told what is being done before the first request can be answered.
        ready: told the URLs when it can.

    Raises:
        CannotStart: and others with a one-line text, when it cannot start.
    """
    clock = SystemClock()
    signals = StopSignals()
    listeners = settings.listeners
    async with (
        bound_listeners(listeners) as sockets,
        open_stores(settings, progress=progress) as stores,
        run_services(settings, stores, clock) as hosted,
    ):
        await answer_requests(hosted, settings, listeners, sockets, clock=clock, signals=signals, ready=ready)


@asynccontextmanager
async def run_services(
    settings: Settings, stores: Stores, clock: Clock, *, records: RecordBus | None = None
) -> AsyncIterator[Hosted]:
    """Start every service, and stop them in order at the end; one that fails ends the block with its exception.

    Args:
        records: a log that outlives this run; by default one of its own.
    """
    ids = IdSource()
    rates = {name: Rate(limit.per_second, limit.burst_count) for name, limit in settings.rate_limits().items()}
    last_seen = LastSeenRecorder(stores.accounts, clock)
    signing_keys = load_signing_keys(settings)
    async with opened_federation(settings, signing_keys, stores.accounts, clock, ids) as federation:
        around = Surroundings(
            settings=settings,
            name=settings.tessera.instance_name or "serve",
            is_shared=False,
            clock=clock,
            ids=ids,
            accounts=stores.accounts,
            shards=stores.shards,
            commands=LocalCommandBus(ids.token()),
            records=records or LocalRecordBus(),
            fanout=LocalFanout(),
            limits=LocalRateLimits(clock, rates),
            last_seen=last_seen,
            authenticator=TokenAuthenticator(stores.accounts, clock, last_seen, load_appservices(settings)),
            signing_key=signing_keys[0],
            federation=federation,
        )
        async with hosting(ALL_SERVICES, around, {}, {}) as hosted:
            yield hosted
