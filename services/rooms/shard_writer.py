"""The writer of one shard: gather, decide, again.

While a batch commits, commands gather in the reader; there is no timer. Everything in memory
(hot rooms, heads) changes only after the commit that it tells of.

Spec: none; DESIGN.md section 3.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from services.rooms import metrics
from services.rooms.deciding import Decider
from services.rooms.hot_rooms import HotRooms
from services.rooms.lanes import Lanes
from services.rooms.owned_partitions import RETRY_SECONDS, OwnedPartitions
from services.rooms.ownership import Owner
from services.rooms.room_work import Signer
from tessera.bus import BusUnavailable, CommandBus, CommandReader, Delivered, RecordBus, TopicReplaced
from tessera.clock import Clock
from tessera.fanout import Fanout
from tessera.storage.database import Database

log = structlog.get_logger(__name__)

MAX_COMMANDS = 500  # of a batch


class ShardWriter:
    """Writes the rooms of the partitions that it owns in one shard."""

    def __init__(
        self,
        shard: str,
        database: Database,
        placed: Callable[[], Sequence[int]],
        owner: Owner,
        *,
        signer: Signer,
        commands: CommandBus,
        records: RecordBus,
        fanout: Fanout,
        clock: Clock,
        hot_rooms_bytes: int,
    ) -> None:
        self._commands = commands
        self._clock = clock
        rooms = self._rooms = HotRooms(hot_rooms_bytes)
        self._partitions = OwnedPartitions(
            shard, database, placed, owner, rooms=rooms, records=records, fanout=fanout, clock=clock
        )
        self._decider = Decider(shard, database, self._partitions, rooms, signer=signer, fanout=fanout, clock=clock)
        self._lanes = Lanes(self._partitions)
        self._reader: CommandReader | None = None
        self._stopping = False
        self._stopped = asyncio.Event()

    @property
    def ready(self) -> asyncio.Event:
        """Set once the free partitions have been taken for the first time."""
        return self._partitions.ownership.ready

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that are written here now."""
        return frozenset(self._partitions)

    async def run(self) -> None:
        """Write until `stop`."""
        partitions = self._partitions
        self._reader = await self._commands.open_reader()
        partitions.attach(self._reader)
        metrics.LAGS.sources.add(partitions.lags)
        try:
            async with asyncio.TaskGroup() as tasks:
                leases = tasks.create_task(partitions.ownership.run())
                pump = tasks.create_task(partitions.pump.run())
                arrivals = tasks.create_task(partitions.begin_arrivals())
                giving = tasks.create_task(partitions.ownership.run_giving(self.hand_over))
                try:
                    await self._write(self._reader)
                finally:
                    giving.cancel()
                    arrivals.cancel()
                    await partitions.finish()
                    pump.cancel()
                    await partitions.ownership.stop()
                    await leases
        finally:
            metrics.LAGS.sources.discard(partitions.lags)
            self._stopped.set()  # however it ended: nobody waits for it in vain

    async def stop(self) -> None:
        """Finish the batch, release the leases and end `run`."""
        self._stopping = True
        if self._reader is not None:
            await self._reader.close()
            await self._stopped.wait()

    async def check_leases(self) -> None:
        """For /ready. Raises LeasesNotKept."""
        await self._partitions.ownership.check()

    async def drain(self) -> None:
        """Hand every partition over to the other living writers of the shard, if there are any."""
        await self._partitions.ownership.drain(self.hand_over)

    async def hand_over(self, partition: int, name: str) -> bool:
        """Give one partition to the living writer of that name or owner; False if it stays here."""
        return await self._partitions.hand_over(partition, name)

    async def _write(self, reader: CommandReader) -> None:
        while not self._stopping:
            try:
                delivered = reader.take_ready(MAX_COMMANDS) if self._lanes else await reader.take(MAX_COMMANDS)
            except TopicReplaced as error:
                # At once: nobody may write the new topic's id beside an offset of the old one.
                self._partitions.lose(list(self._partitions.ownership.epochs), "topic")
                log.error("commands are read from the beginning", reason=str(error))
                continue
            except BusUnavailable as error:
                delivered = []  # what was read before can be decided
                if not self._stopping:
                    log.warning("commands cannot be read", error=str(error))
                    await self._clock.sleep(RETRY_SECONDS)
            if not self._stopping:
                async with self._partitions.writing:
                    await self._take(delivered)
                    await self._decider.decide(self._lanes.next_batch())

    async def _take(self, delivered: Sequence[Delivered]) -> None:
        """Put what was delivered into its lane; commands that may have ended the last writer are decided singly."""
        for one in delivered:
            owned = self._partitions.find(one.partition)
            if owned is None:
                continue  # lost meanwhile: its next reader gets it
            owned.undone[one.offset] = None
            owned.taken_offset = one.offset
            if one.offset > owned.careful_until:
                self._lanes.add(owned, one)
            else:
                await self._decider.decide_singly(one)
