"""Receipts on their way: public ones are gathered for each room into one command, early ones wait for their event.

The first receipt of a quiet room goes at once; what follows within the room's interval goes together at its end, so
that a room has one record an interval at most and two people in a conversation do not wait. A receipt that comes
before its event does is kept for a while; one that stays without an event is dropped.

Spec: C-S API §Receipts; DESIGN.md section 5.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import structlog

from matrixcore.identifiers import EventId, RoomId
from services.gateway.room_changes import RoomChanges
from tessera.commands import SetReceipts
from tessera.http.errors import MatrixError
from tessera.records import OrderKey, Receipt
from tessera.storage import appservice_queue, read_positions, user_log
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.read_positions import ReadPosition
from tessera.storage.room_reads.receipts import list_places

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.2
GATHER_SECONDS_IN_LARGE_ROOMS = 2.0
LARGE_ROOM = 500  # joined members
MAX_ROOMS = 10_000
MAX_RECEIPTS_PER_ROOM = 5_000
MAX_WAITING = 10_000  # receipts without their event
WAIT_SECONDS = 30.0
LOOK_AGAIN_SECONDS = 1.0
MAX_ATTEMPTS = 5
PARALLEL_COMMANDS = 16

PUBLIC = "m.read"
PRIVATE = "m.read.private"


@dataclass(slots=True)
class _RoomBatch:
    due: float
    interval_seconds: float
    receipts: dict[tuple[str, str, str], Receipt] = field(default_factory=dict)
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class EarlyReceipt:
    """A receipt whose event is not known here yet."""

    room_id: RoomId
    receipt: Receipt
    deadline: float


class ReceiptBatches:
    """Receives receipts from the handlers; `run` brings them into the rooms."""

    def __init__(self, changes: RoomChanges) -> None:
        self._changes = changes
        self._rooms: dict[RoomId, _RoomBatch] = {}
        self._closed_until: dict[RoomId, float] = {}  # rooms whose interval since their last batch still runs
        self._early: list[EarlyReceipt] = []
        self._look_at = self._sweep_at = 0.0
        self._wakeup = asyncio.Event()

    def add(self, room_id: RoomId, receipt: Receipt, joined_count: int) -> bool:
        """Take a public receipt for the room's next batch; False if there is no place (answer 429)."""
        batch = self._rooms.get(room_id)
        if batch is None:
            if len(self._rooms) >= MAX_ROOMS:
                return False
            seconds = GATHER_SECONDS_IN_LARGE_ROOMS if joined_count > LARGE_ROOM else GATHER_SECONDS
            now = self._changes.clock.monotonic()
            batch = self._rooms[room_id] = _RoomBatch(max(now, self._closed_until.get(room_id, now)), seconds)
            self._wakeup.set()
        key = (receipt.user_id, receipt.receipt_type, receipt.thread_id)
        if key not in batch.receipts and len(batch.receipts) >= MAX_RECEIPTS_PER_ROOM:
            return False
        batch.receipts[key] = receipt
        return True

    def add_early(self, room_id: RoomId, receipt: Receipt) -> bool:
        """Take a receipt of any type whose event is not here yet; False if there is no place."""
        if len(self._early) >= MAX_WAITING:
            return False
        self._early.append(EarlyReceipt(room_id, receipt, self._changes.clock.monotonic() + WAIT_SECONDS))
        self._wakeup.set()
        return True

    async def run(self) -> None:
        """Run for ever: send batches when they are due, and look for the events of early receipts."""
        clock = self._changes.clock
        while True:
            self._wakeup.clear()
            times = [batch.due for batch in self._rooms.values()]
            if self._early:
                times.append(self._look_at)
            await self._sleep_until(min(times, default=None))
            try:
                if self._early and clock.monotonic() >= self._look_at:
                    self._look_at = clock.monotonic() + LOOK_AGAIN_SECONDS
                    await self.settle_early()
                await self.send_due()
            except Exception:  # a store is away: what is gathered stays for the next round
                log.warning("receipts not brought on their way", exc_info=True)
                await clock.sleep(LOOK_AGAIN_SECONDS)

    async def _sleep_until(self, moment: float | None) -> None:
        """Wait for the moment, or for news that may be due before it."""
        woken = asyncio.ensure_future(self._wakeup.wait())
        waiting: list[asyncio.Future[Any]] = [woken]
        if moment is not None:
            seconds = moment - self._changes.clock.monotonic()
            if seconds <= 0:
                woken.cancel()
                return
            waiting.append(asyncio.ensure_future(self._changes.clock.sleep(seconds)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()

    async def send_due(self, *, everything: bool = False) -> None:
        """Send the batches whose time has come, or all of them (at shutdown)."""
        now = self._changes.clock.monotonic()
        ready = {room: batch for room, batch in self._rooms.items() if everything or batch.due <= now}
        if now >= self._sweep_at:
            self._sweep_at = now + GATHER_SECONDS_IN_LARGE_ROOMS
            self._closed_until = {room: moment for room, moment in self._closed_until.items() if moment > now}
        for room_id, batch in ready.items():
            del self._rooms[room_id]
            self._closed_until[room_id] = now + batch.interval_seconds
        places = asyncio.Semaphore(PARALLEL_COMMANDS)

        async def send(room_id: RoomId, batch: _RoomBatch) -> None:
            async with places:
                await self._send(room_id, batch)

        await asyncio.gather(*(send(room_id, batch) for room_id, batch in ready.items()))

    async def flush(self) -> None:
        """Send what is gathered, at the end of the process."""
        await self.send_due(everything=True)

    async def settle_early(self) -> None:
        """Bring the early receipts whose events have come on their way, and drop those that waited too long."""
        if not self._early:
            return
        early, self._early = self._early, []
        shards = self._changes.shards
        groups: dict[str, list[EarlyReceipt]] = {}
        try:
            for waiting in early:
                shard = shards.shard_of(shards.partition_of(waiting.room_id))
                groups.setdefault(shard, []).append(waiting)
        except DatabaseUnavailable:
            self._early += early
            raise
        await asyncio.gather(*(self._settle_shard(shard, group) for shard, group in groups.items()))

    async def _settle_shard(self, shard: str, group: list[EarlyReceipt]) -> None:
        """The early receipts of one shard. As long as a store is away they wait, and hold up nobody else's."""
        now = self._changes.clock.monotonic()
        wanted = list(dict.fromkeys((waiting.room_id, waiting.receipt.event_id) for waiting in group))
        try:
            async with self._changes.shards.databases[shard].reading() as tx:
                places = await list_places(tx, wanted)
            found = [waiting for waiting in group if (waiting.room_id, waiting.receipt.event_id) in places]
            await self._settle(found, places)
        except Exception as error:
            self._early += group
            if not isinstance(error, DatabaseUnavailable | OSError | TimeoutError):
                raise
            log.warning("early receipts wait for a store", shard=shard, receipts=len(group), error=str(error))
            return
        self._early += [
            waiting
            for waiting in group
            if (waiting.room_id, waiting.receipt.event_id) not in places and waiting.deadline > now
        ]

    async def _settle(
        self,
        found: list[EarlyReceipt],
        places: dict[tuple[RoomId, EventId], tuple[OrderKey, EventId | None]],
    ) -> None:
        positions = []
        for waiting in found:
            receipt = waiting.receipt
            order, _ = places[waiting.room_id, receipt.event_id]
            positions.append(read_position(waiting.room_id, receipt, order))
            if receipt.receipt_type == PUBLIC:
                self.add(waiting.room_id, receipt, 0)
        await set_read_positions(self._changes, positions)

    async def _send(self, room_id: RoomId, batch: _RoomBatch) -> None:
        receipts = tuple(batch.receipts.values())
        try:
            await self._changes.submit(room_id, receipts[0].user_id, SetReceipts(receipts))
        except MatrixError as error:
            if error.status != 503 or batch.attempts + 1 >= MAX_ATTEMPTS:
                log.warning("receipts dropped", room_id=room_id, receipts=len(receipts), errcode=error.errcode)
                return
            due = self._changes.clock.monotonic() + LOOK_AGAIN_SECONDS
            later = self._rooms.setdefault(room_id, _RoomBatch(due, batch.interval_seconds))
            later.attempts = batch.attempts + 1
            later.receipts = {**batch.receipts, **later.receipts}


def read_position(room_id: RoomId, receipt: Receipt, order: OrderKey) -> ReadPosition:
    """A receipt as its user's own read position."""
    return ReadPosition(
        receipt.user_id,
        room_id,
        receipt.receipt_type,
        receipt.thread_id,
        receipt.event_id,
        order.anchor,
        order.sub,
        receipt.ts,
    )


async def set_read_positions(changes: RoomChanges, positions: list[ReadPosition]) -> None:
    """Move users' own read positions and tell their clients."""
    if not positions:
        return
    async with changes.accounts.transaction() as tx:
        heads = await read_positions.set_positions(tx, positions)
        if changes.bridges is not None and heads:
            private = [
                (one.room_id, Receipt(one.user_id, PRIVATE, one.thread_id, one.event_id, one.ts))
                for one in positions
                if one.receipt_type == PRIVATE and one.user_id in heads
            ]
            await appservice_queue.add_ephemeral(tx, changes.bridges.private_receipts(private))
    if heads:
        await changes.fanout.publish_user_wakes(user_log.wakes_of(heads))
