"""Sending the queues: one transaction at a time to each service, the services side by side.

Each service is the work of one process, by its bucket. What is due is asked of PostgreSQL, so that a service that is
away is a row there and nothing here.

Spec: Application Service API §Pushing events.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Protocol

import structlog

from services.appservice import metrics
from services.appservice.composing import compose, load_events
from services.appservice.pauses import next_pause
from tessera.appservice_client import AppServiceFailed
from tessera.appservices import Registration
from tessera.clock import Clock
from tessera.ids import IdSource
from tessera.storage import appservice_queue
from tessera.storage.appservice_queue import DueService, NewTransaction
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

PARALLEL = 32  # services at once
IN_A_ROW = 20  # transactions of one service, then its place is free for another
POLL_SECONDS = 0.25
PAUSE_SECONDS = 1.0
MEASURE_SECONDS = 15.0


class TransactionClient(Protocol):
    """What the sender needs of `tessera.appservice_client.AppServiceClient`."""

    async def send_transaction(self, service: Registration, txn_id: str, body: bytes) -> None:
        """Send a transaction. Raises AppServiceFailed."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A transaction that lies in its service's row; the counts are not known of one that was made before."""

    txn_id: str
    body: bytes
    events: int = 0
    ephemeral: int = 0


class Sender:
    """Sends to the services of the buckets that it is given (`take_on`, `give_up`)."""

    name = "appservice_sender"

    def __init__(
        self,
        *,
        services: Sequence[Registration],
        accounts: Database,
        shards: RoomShards,
        client: TransactionClient,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._services = {one.service_id: one for one in services}
        self._accounts = accounts
        self._shards = shards
        self._client = client
        self._clock = clock
        self._ids = ids
        self._buckets: set[int] = set()
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._trouble = ""

    @property
    def partitions(self) -> frozenset[int]:
        """The buckets that it has; there are as many as partitions."""
        return frozenset(self._buckets)

    @property
    def own(self) -> list[str]:
        """The IDs of the services in these buckets."""
        return [name for name in self._services if bucket_of(name, self._shards.partitions) in self._buckets]

    def take_on(self, partitions: Iterable[int]) -> None:
        """Send to the services of these buckets too."""
        self._buckets.update(partitions)
        self._woken.set()

    async def give_up(self, partitions: Collection[int]) -> None:
        """Send to these no longer; what is under way is broken off, and sent again by who has them next."""
        self._buckets.difference_update(partitions)
        own = set(self.own)
        tasks = [task for name, task in self._under_way.items() if name not in own]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def wake(self) -> None:
        """Something has been queued."""
        self._woken.set()

    async def check(self) -> None:
        """For /ready. Raises DatabaseUnavailable."""
        if self._trouble:
            raise DatabaseUnavailable(self._trouble)

    async def run(self) -> None:
        """Run for ever; while a store is away nothing is sent."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._measure_for_ever())
            while True:
                self._woken.clear()
                try:
                    await self.start_due(tasks)
                    self._trouble = ""
                except DatabaseUnavailable as error:
                    self._trouble = str(error)
                    log.warning("application services are told nothing", error=str(error))
                    await self._clock.sleep(PAUSE_SECONDS)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._woken.wait()

    async def start_due(self, tasks: asyncio.TaskGroup) -> int:
        """Begin with the services that are due and not busy; how many."""
        idle = [name for name in self.own if name not in self._under_way]
        places = PARALLEL - len(self._under_way)
        if not idle or places <= 0:
            return 0
        async with self._accounts.reading() as tx:
            due = await appservice_queue.list_due(tx, idle)
        own = set(self.own)  # some may have been given up meanwhile
        # Those that answer come first, so that the dead hold nobody up.
        due = sorted((one for one in due if one.service_id in own), key=lambda one: one.failures)[:places]
        for one in due:
            task = self._under_way[one.service_id] = tasks.create_task(self._serve_safely(one))
            # Not in the task itself: one that is broken off before its first step runs nothing of its own.
            task.add_done_callback(partial(self._ended, one.service_id))
        return len(due)

    def _ended(self, service_id: str, _task: asyncio.Task[None]) -> None:
        self._under_way.pop(service_id, None)
        self._woken.set()

    async def _serve_safely(self, due: DueService) -> None:
        """One service that cannot be served must not stop the others."""
        try:
            await self._serve(due)
        except DatabaseUnavailable as error:
            log.warning("application service not served", service_id=due.service_id, error=str(error))
            await self._clock.sleep(PAUSE_SECONDS)
        except Exception:
            log.exception("application service not served", service_id=due.service_id)
            await self._clock.sleep(PAUSE_SECONDS)

    async def _serve(self, due: DueService) -> None:
        service = self._services[due.service_id]
        last_pause = due.retry_seconds
        sent: _Outgoing | None = None
        if due.txn_id is not None:
            sent = _Outgoing(due.txn_id, due.txn_body or b'{"events":[]}')
        for _ in range(IN_A_ROW):
            sent = sent or await self._compose(service)
            if sent is None or not await self._send(service, sent, last_pause):
                return
            sent, last_pause = None, 0.0

    async def _compose(self, service: Registration) -> _Outgoing | None:
        """A new transaction, kept before anything of it is sent; None if nothing waits, or another one is kept."""
        service_id = service.service_id
        async with self._accounts.reading() as tx:
            queued = await appservice_queue.list_events(tx, service_id)
            passing = await appservice_queue.list_ephemeral(tx, service_id)
        if not queued and not passing:
            return None
        stored = await load_events(self._shards, queued)
        older_ephemeral = service.has_older_ephemeral
        made = compose(queued, stored, passing, self._clock.now_ms(), older_ephemeral=older_ephemeral)
        if not made.event_count and not passing:
            async with self._accounts.reading() as tx:
                await appservice_queue.delete_events(tx, service_id, made.events)
            return None
        sent = _Outgoing(self._ids.token(15), made.body, made.event_count, len(made.ephemeral))
        new = NewTransaction(service_id, sent.txn_id, made.body, made.events, made.ephemeral)
        async with self._accounts.reading() as tx:
            return sent if await appservice_queue.persist(tx, new) else None

    async def _send(self, service: Registration, sent: _Outgoing, last_pause: float) -> bool:
        """Send and note how it ended; False if the service is left alone for now."""
        began = self._clock.monotonic()
        try:
            await self._client.send_transaction(service, sent.txn_id, sent.body)
        except AppServiceFailed as error:
            metrics.TRANSACTIONS.labels("failed").inc()
            log.info("application service failed", service_id=service.service_id, error=str(error))
            pause = next_pause(last_pause, self._ids.fraction, error.retry_after)
            async with self._accounts.reading() as tx:
                await appservice_queue.fail(tx, service.service_id, sent.txn_id, str(error), pause)
            return False
        metrics.SEND_SECONDS.observe(self._clock.monotonic() - began)
        async with self._accounts.reading() as tx:
            await appservice_queue.settle(tx, service.service_id, sent.txn_id)
        metrics.TRANSACTIONS.labels("taken").inc()
        metrics.EVENTS.inc(sent.events)
        metrics.EPHEMERAL.inc(sent.ephemeral)
        return True

    async def _measure_for_ever(self) -> None:
        while True:
            with suppress(DatabaseUnavailable):
                async with self._accounts.reading() as tx:
                    found = await appservice_queue.list_status(tx, self.own)
                metrics.QUEUED.set(sum(one.queued for one in found))
                metrics.OLDEST_SECONDS.set(max((one.oldest_seconds for one in found), default=0.0))
                metrics.FAILING.set(sum(1 for one in found if one.failures))
            await self._clock.sleep(MEASURE_SECONDS)


def bucket_of(service_id: str, buckets: int) -> int:
    """Which process's work a service is: a stable hash."""
    return int.from_bytes(sha256(service_id.encode()).digest()[:8]) % buckets
