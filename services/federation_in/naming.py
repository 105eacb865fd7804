"""Telling the room writers which rows of the inbox are for them.

A name is only a hint that something lies there: what is not taken in after a while is named once more, by whichever
process looks first. How a name came out tells whether PDUs wait for ancestors, which are then fetched.

Spec: none; DESIGN.md section 6.
"""

from collections.abc import Callable, Sequence

import structlog

from matrixcore.identifiers import RoomId, UserId
from services.federation_in.receiving import InboxNames
from tessera.bus import BusUnavailable, CommandBus
from tessera.clock import Clock
from tessera.commands import Command, CommandBody, Outcome, OutcomeStatus, ReceivePdus, Unpark
from tessera.fanout import Fanout, Subscriber, Subscription
from tessera.ids import IdSource
from tessera.storage import inbox
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

LYING_SECONDS = 15.0  # a row that nobody has taken in for so long is named again
SWEEP_SECONDS = 5.0
SWEEP_ROWS = 500  # of one shard at once
MAX_NAMED = 100  # rows of one command
MAX_AWAITED = 5_000  # commands whose outcomes are listened for
ALWAYS_MORE = 1 << 30  # an unpark takes in some of what waits; the rest is to be looked after
NOBODY = UserId("")  # such commands have no sender


class InboxNaming:
    """Names inbox rows to the writers.

    Args:
        on_parked: told of a room whose writer did not store all that was named.
    """

    def __init__(
        self,
        bus: CommandBus,
        fanout: Fanout,
        shards: RoomShards,
        clock: Clock,
        ids: IdSource,
        *,
        on_parked: Callable[[RoomId], None],
    ) -> None:
        self._bus = bus
        self._fanout = fanout
        self._shards = shards
        self._clock = clock
        self._ids = ids
        self._on_parked = on_parked
        self._awaited: dict[bytes, tuple[RoomId, int]] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen for outcomes."""
        self._subscription = await self._fanout.subscribe(Subscriber(on_outcomes=self._on_outcomes))

    async def stop(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            await self._subscription.close()

    async def name(self, names: Sequence[InboxNames], *, look_again: bool = False) -> None:
        """Tell the writers; what the topic does not take now is named again later.

        Args:
            look_again: others wait for these, and are to be looked after when the writer has taken them in.
        """
        for one in names:
            for start in range(0, len(one.inbox_ids), MAX_NAMED):
                body = ReceivePdus(one.inbox_ids[start : start + MAX_NAMED])
                expected = ALWAYS_MORE if look_again else len(body.inbox_ids)
                if not await self._send(one.partition, one.room_id, body, expected):
                    return

    async def unpark(self, room_id: RoomId) -> None:
        """Tell a room's writer that ancestors have come."""
        await self._send(self._shards.partition_of(room_id), room_id, Unpark(), ALWAYS_MORE)

    async def sweep(self) -> None:
        """Run for ever: name what lies."""
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            for name in self._shards.names:
                try:
                    await self.sweep_shard(name)
                except (DatabaseUnavailable, OSError, TimeoutError) as error:
                    log.warning("inbox not swept", shard=name, error=str(error) or type(error).__name__)

    async def sweep_shard(self, name: str, lying_seconds: float = LYING_SECONDS) -> None:
        """Name what has lain in a shard for so long."""
        async with self._shards.databases[name].reading() as tx:
            lying = await inbox.claim_new(tx, lying_seconds, SWEEP_ROWS)
        if lying:
            log.info("inbox rows named again", shard=name, rows=sum(map(len, lying.values())))
        await self.name([InboxNames(*key, tuple(inbox_ids)) for key, inbox_ids in lying.items()])

    async def _send(self, partition: int, room_id: RoomId, body: CommandBody, expected: int) -> bool:
        address = "" if self._subscription is None else self._subscription.reply_address
        command_id = self._ids.random_bytes(32)
        command = Command(command_id, room_id, partition, NOBODY, self._clock.now_ms(), body, reply_to=address)
        if len(self._awaited) >= MAX_AWAITED:
            del self._awaited[next(iter(self._awaited))]
        self._awaited[command_id] = (room_id, expected)
        try:
            await self._bus.send(command)
        except BusUnavailable as error:
            log.info("inbox rows not named", room_id=room_id, error=str(error))
            self._awaited.pop(command_id, None)
            return False
        return True

    def _on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            awaited = self._awaited.pop(outcome.command_id, None)
            if awaited is None:
                continue
            room_id, expected = awaited
            if outcome.status is OutcomeStatus.ACCEPTED and len(outcome.event_ids) < expected:
                self._on_parked(room_id)
