"""Sending the queues: one transaction at a time to each server, many servers side by side.

What is due is claimed by a query, whatever the number of servers; a server that nothing is sent to right now is a row
in PostgreSQL and nothing here. Servers that answered last have places of their own, so that those that are dead hold
nobody up, and so have servers of which nobody knows yet: most of a large old room's may be dead.

Spec: S-S API §Transactions.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from matrixcore.identifiers import ServerName
from services.federation_out import metrics
from services.federation_out.composing import catch_up, fit_edus, load_pdus, transaction_body
from services.federation_out.ephemeral import EphemeralEdus
from services.federation_out.pauses import next_pause
from tessera.clock import Clock
from tessera.federation.client import endpoint
from tessera.federation.errors import PeerError, PeerRefused
from tessera.ids import IdSource
from tessera.storage import federation_destinations, federation_queue
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.federation_destinations import DueDestination, Failure, NewTransaction
from tessera.storage.federation_queue import MAX_EDUS, MAX_PDUS
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

HEALTHY_PLACES = 150
UNPROVEN_PLACES = 300
FAILING_PLACES = 50
AT_ONCE = 25  # destinations whose transactions are made together
MAX_BYTES_UNDER_WAY = 48 << 20
POLL_SECONDS = 0.25
PAUSE_SECONDS = 1.0
MEASURE_SECONDS = 15.0
SEND_SECONDS = 60.0
MAX_ANSWER_BYTES = 1 << 20
# A server that does not take a transaction for what it holds would wait for ever.
UNACCEPTABLE = frozenset((400, 413, 422))
UNACCEPTABLE_AFTER = 3
PATH = "/_matrix/federation/v1/send/{}"


class PeerClient(Protocol):
    """What the sender needs of `tessera.federation.client.FederationClient`."""

    async def put(
        self, server: str, path: str, body: bytes, *, timeout_s: float = ..., max_bytes: int = ...
    ) -> dict[str, Any]:
        """PUT a JSON object. Raises PeerError."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A transaction to be sent now.

    Attributes:
        is_kept: whether it lies in the destination's row; one of typing and presence alone does not.
        is_unproven: whether the destination has never been sent anything.
    """

    destination: ServerName
    bucket: int
    txn_id: str
    body: bytes
    failures: int = 0
    retry_seconds: float = 0.0
    pdus: int = 0
    edus: int = 0
    is_kept: bool = True
    is_unproven: bool = False


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a transaction ended: taken, unless there is an error."""

    sent: _Outgoing
    error: PeerError | None = None
    dropped: bool = False


class Sender:
    """Sends to the destinations of the buckets that it is given (`take_on`, `give_up`)."""

    name = "federation_sender"

    def __init__(
        self,
        *,
        accounts: Database,
        shards: RoomShards,
        client: PeerClient,
        ephemeral: EphemeralEdus,
        clock: Clock,
        ids: IdSource,
        server_name: ServerName,
    ) -> None:
        self._accounts = accounts
        self._shards = shards
        self._client = client
        self._ephemeral = ephemeral
        self._clock = clock
        self._ids = ids
        self._server_name = server_name
        self._buckets: set[int] = set()
        self._under_way: dict[ServerName, tuple[_Outgoing, asyncio.Task[None]]] = {}
        self._ended: list[_Ended] = []
        self._has_ended = asyncio.Event()
        self._woken = asyncio.Event()
        self._trouble = ""

    @property
    def partitions(self) -> frozenset[int]:
        """The buckets that it has; there are as many as partitions."""
        return frozenset(self._buckets)

    def take_on(self, partitions: Iterable[int]) -> None:
        """Send to the destinations of these buckets too."""
        self._buckets.update(partitions)
        self._ephemeral.buckets = frozenset(self._buckets)
        self._woken.set()

    async def give_up(self, partitions: Collection[int]) -> None:
        """Send to these no longer; what is under way is broken off, and sent again by who has them next."""
        self._buckets.difference_update(partitions)
        self._ephemeral.buckets = frozenset(self._buckets)
        tasks = [task for sent, task in self._under_way.values() if sent.bucket in partitions]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def wake(self) -> None:
        """Something has been queued."""
        self._woken.set()

    async def check(self) -> None:
        """For /ready. Raises DatabaseUnavailable."""
        if self._trouble:
            raise DatabaseUnavailable(self._trouble)

    async def run(self) -> None:
        """Run for ever; while a store is away nothing is sent."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settle_for_ever())
            tasks.create_task(self._measure_for_ever())
            while True:
                self._woken.clear()
                try:
                    started = await self._start_due(tasks)
                    self._trouble = ""
                except DatabaseUnavailable as error:
                    self._trouble = str(error)
                    log.warning("nothing is sent to other servers", error=str(error))
                    await self._clock.sleep(PAUSE_SECONDS)
                    continue
                if not started:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL_SECONDS):
                            await self._woken.wait()

    async def _start_due(self, tasks: asyncio.TaskGroup) -> int:
        """Begin transactions for who is due; how many."""
        if not self._buckets or sum(len(sent.body) for sent, _ in self._under_way.values()) > MAX_BYTES_UNDER_WAY:
            return 0
        failing = sum(1 for sent, _ in self._under_way.values() if sent.failures)
        unproven = sum(1 for sent, _ in self._under_way.values() if sent.is_unproven)
        healthy = len(self._under_way) - failing - unproven
        async with self._accounts.reading() as tx:
            due = await federation_destinations.list_due(
                tx,
                sorted(self._buckets),
                list(self._under_way),
                max(0, min(AT_ONCE, HEALTHY_PLACES - healthy)),
                max(0, min(AT_ONCE, UNPROVEN_PLACES - unproven)),
                max(0, min(AT_ONCE, FAILING_PLACES - failing)),
            )
        outgoing = [self._kept(one) for one in due if one.txn_id is not None]
        outgoing += await self._compose([one for one in due if one.txn_id is None])
        healthy += sum(1 for one in due if not one.failures and not one.is_unproven)
        outgoing += await self._compose_ephemeral({one.destination for one in due}, HEALTHY_PLACES - healthy)
        for one in outgoing:
            self._under_way[one.destination] = (one, tasks.create_task(self._send(one)))
        metrics.UNDER_WAY.set(len(self._under_way))
        return len(due) + len(outgoing)

    @staticmethod
    def _kept(due: DueDestination) -> _Outgoing:
        assert due.txn_id is not None
        body = due.txn_body or b"{}"
        return _Outgoing(
            due.destination,
            due.bucket,
            due.txn_id,
            body,
            due.failures,
            due.retry_seconds,
            is_unproven=due.is_unproven,
        )

    async def _compose(self, due: Sequence[DueDestination]) -> list[_Outgoing]:
        """New transactions, kept before anything of them is sent."""
        if not due:
            return []
        names = [one.destination for one in due]
        async with self._accounts.reading() as tx:
            marked = await federation_queue.list_marked(tx, names)
            pdus = await federation_queue.list_pdus(tx, names)
            edus = await federation_queue.list_edus(tx, names)
        if missed := [name for name in marked if not pdus.get(name)]:
            for name in missed:
                await catch_up(self._accounts, self._shards, self._shards.partitions, name, self._server_name)
            async with self._accounts.reading() as tx:
                pdus |= await federation_queue.list_pdus(tx, missed)
        events = await load_pdus(self._shards, (pdu for queued in pdus.values() for pdu in queued))
        now_ms = self._clock.now_ms()
        made: dict[ServerName, tuple[_Outgoing, NewTransaction]] = {}
        for one in due:
            queued = pdus.get(one.destination, [])
            fitting = fit_edus(edus.get(one.destination, []))
            if not queued and not fitting:
                continue
            passing = self._ephemeral.take(one.destination, MAX_EDUS - len(fitting)) if one.failures == 0 else []
            content = [event for pdu in queued if (event := events.get((pdu.room_id, pdu.event_id))) is not None]
            every = [*(edu.edu for edu in fitting), *passing]
            body = transaction_body(self._server_name, now_ms, content, every)
            txn_id = self._ids.token(15)
            sent = _Outgoing(
                one.destination,
                one.bucket,
                txn_id,
                body,
                one.failures,
                one.retry_seconds,
                len(content),
                len(every),
                is_unproven=one.is_unproven,
            )
            carried = tuple(pdu.seq for pdu in queued), tuple(edu.seq for edu in fitting)
            made[one.destination] = sent, NewTransaction(one.destination, txn_id, body, *carried)
        async with self._accounts.transaction() as tx:
            await federation_destinations.settle_idle(tx, [name for name in names if name not in made])
            full = [name for name in made if len(pdus.get(name, ())) == MAX_PDUS]
            kept = await federation_destinations.persist(tx, [new for _, new in made.values()])
            await federation_destinations.shorten_backlogs(tx, full)
        return [sent for name, (sent, _) in made.items() if name in kept]

    async def _compose_ephemeral(self, due: Collection[ServerName], places: int) -> list[_Outgoing]:
        """Transactions of nothing but typing and presence: they are not kept, and lost with this process."""
        names = [name for name in self._ephemeral.list_waiting() if name not in due and name not in self._under_way]
        names = names[: max(0, min(AT_ONCE, places))]
        if not names:
            return []
        async with self._accounts.reading() as tx:
            failing = await federation_destinations.list_failing(tx, names)
        outgoing = []
        for name in names:
            edus = self._ephemeral.take(name, MAX_EDUS)
            if name in failing or not edus:
                continue
            body = transaction_body(self._server_name, self._clock.now_ms(), (), edus)
            bucket = federation_queue.bucket_of(name, self._shards.partitions)
            outgoing.append(_Outgoing(name, bucket, self._ids.token(15), body, edus=len(edus), is_kept=False))
        return outgoing

    async def _send(self, sent: _Outgoing) -> None:
        began = self._clock.monotonic()
        ended = None
        try:
            path = endpoint(PATH, sent.txn_id)
            await self._client.put(
                sent.destination, path, sent.body, timeout_s=SEND_SECONDS, max_bytes=MAX_ANSWER_BYTES
            )
            ended = _Ended(sent)
        except PeerError as error:
            is_unacceptable = isinstance(error, PeerRefused) and error.status in UNACCEPTABLE
            ended = _Ended(sent, error, dropped=is_unacceptable and sent.failures + 1 >= UNACCEPTABLE_AFTER)
        finally:
            if ended is None:  # broken off
                self._under_way.pop(sent.destination, None)
            else:
                metrics.SEND_SECONDS.observe(self._clock.monotonic() - began)
                self._ended.append(ended)
                self._has_ended.set()

    async def _settle_for_ever(self) -> None:
        while True:
            await self._has_ended.wait()
            self._has_ended.clear()
            ended, self._ended = self._ended, []
            while True:
                try:
                    more = await self._settle(ended)
                    break
                except DatabaseUnavailable as error:
                    log.warning("what was sent cannot be noted", error=str(error))
                    await self._clock.sleep(PAUSE_SECONDS)
            for one in ended:
                self._under_way.pop(one.sent.destination, None)
            metrics.UNDER_WAY.set(len(self._under_way))
            if more or len(self._under_way) + len(ended) >= HEALTHY_PLACES:
                self._woken.set()

    async def _settle(self, ended: Sequence[_Ended]) -> bool:
        """Note how transactions ended; whether more waits for anybody."""
        taken = [one for one in ended if one.sent.is_kept and (one.error is None or one.dropped)]
        failed = [
            Failure(
                one.sent.destination,
                str(one.error),
                next_pause(
                    one.sent.retry_seconds,
                    self._ids.fraction,
                    one.error.retry_after_ms if isinstance(one.error, PeerRefused) else None,
                ),
            )
            for one in ended
            if one.sent.is_kept and one.error is not None and not one.dropped
        ]
        more: Sequence[ServerName] = ()
        if taken or failed:
            async with self._accounts.transaction() as tx:
                more = await federation_destinations.settle(
                    tx, sorted((one.sent.destination, one.sent.txn_id) for one in taken)
                )
                await federation_destinations.fail(tx, sorted(failed))
        for one in ended:
            self._count(one)
        return bool(more) or bool(self._ephemeral.list_waiting())

    @staticmethod
    def _count(one: _Ended) -> None:
        if one.error is None:
            metrics.TRANSACTIONS.labels("taken").inc()
            metrics.PDUS.inc(one.sent.pdus)
            metrics.EDUS.inc(one.sent.edus)
        elif one.dropped:
            metrics.TRANSACTIONS.labels("dropped").inc()
            log.error("transaction dropped", destination=one.sent.destination, error=str(one.error))
        else:
            metrics.TRANSACTIONS.labels("failed" if one.sent.is_kept else "lost").inc()
            log.info("transaction not taken", destination=one.sent.destination, error=str(one.error))

    async def _measure_for_ever(self) -> None:
        while True:
            with suppress(DatabaseUnavailable):
                async with self._accounts.reading() as tx:
                    figures = await federation_destinations.measure(tx, sorted(self._buckets))
                for state in ("pending", "failing", "catching_up", "known"):
                    metrics.DESTINATIONS.labels(state).set(getattr(figures, state))
                metrics.OLDEST_SECONDS.set(figures.oldest_seconds)
            await self._clock.sleep(MEASURE_SECONDS)
