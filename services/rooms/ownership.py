"""Keeping the leases of one shard: taking free partitions, staying alive, handing over.

It has a connection of its own, on which the process's advisory lock lives.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from tessera.clock import Clock
from tessera.storage import leases
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.leases import LEASE_SECONDS, TakenPartition

log = structlog.get_logger(__name__)

RENEW_SECONDS = 1.0
TAKE_SECONDS = 0.25  # how often partitions of others are looked at
STATEMENT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Owner:
    """One process as an owner of partitions.

    Attributes:
        name: kept over restarts; partitions are handed over to it.
        owner: the name with a nonce, of this process alone.
        lock_key: of its advisory lock, of this process alone; None behind a connection pooler.
    """

    name: str
    owner: str
    lock_key: int | None


class Ownership:
    """The leases of one shard. The callbacks begin and end the writing of a partition."""

    def __init__(
        self,
        database: Database,
        owner: Owner,
        partitions: Sequence[int],
        clock: Clock,
        *,
        on_taken: Callable[[Sequence[TakenPartition]], None],
        on_lost: Callable[[Collection[int], str], None],
    ) -> None:
        self._database = database
        self._owner = owner
        self._partitions = tuple(partitions)
        self._clock = clock
        self._on_taken = on_taken
        self._on_lost = on_lost
        self._epochs: dict[int, int] = {}
        self._wakeup = asyncio.Event()
        self._stopping = False
        self.ready = asyncio.Event()  # a first look at the leases has been taken

    @property
    def epochs(self) -> dict[int, int]:
        """The partitions that are ours, with their epochs."""
        return self._epochs

    def lose(self, partitions: Collection[int], reason: str) -> None:
        """Give partitions up because their state is not known; they are taken again under a new epoch."""
        lost = [partition for partition in partitions if self._epochs.pop(partition, None) is not None]
        if lost:
            self._on_lost(lost, reason)
            self._wakeup.set()

    async def run(self) -> None:
        """Run until `stop`; whatever happens to the connection, a new one is made."""
        while not self._stopping:
            try:
                async with self._database.reading() as tx:
                    await self._keep(tx)
            except (DatabaseUnavailable, OSError, TimeoutError) as error:
                log.warning("leases cannot be kept", error=str(error) or type(error).__name__)
                await self._clock.sleep(TAKE_SECONDS)
            except Exception:  # whoever stops keeping leases stops the rooms
                log.exception("leases cannot be kept")
                await self._clock.sleep(RENEW_SECONDS)

    async def stop(self) -> None:
        """Make `run` release everything and return; what was taken must have been written."""
        self._stopping = True
        self._wakeup.set()

    async def _keep(self, tx: Transaction) -> None:
        async with asyncio.timeout(STATEMENT_SECONDS):
            await leases.register(tx, self._owner.owner, self._owner.name, self._owner.lock_key)
        renewed = self._clock.monotonic()
        while not self._stopping:
            async with asyncio.timeout(STATEMENT_SECONDS + LEASE_SECONDS):
                await self._take_free()
                if self._clock.monotonic() - renewed >= RENEW_SECONDS * 0.9:
                    await self._renew(tx)
                    renewed = self._clock.monotonic()
            self.ready.set()
            await self._pause(RENEW_SECONDS if len(self._epochs) == len(self._partitions) else TAKE_SECONDS)
        async with asyncio.timeout(STATEMENT_SECONDS):
            await leases.release(tx, self._owner.owner, self._epochs)
            await leases.unregister(tx, self._owner.owner, self._owner.lock_key)
        self._epochs = {}

    async def _take_free(self) -> None:
        wanted = [partition for partition in self._partitions if partition not in self._epochs]
        if not wanted:
            return
        try:
            async with self._database.transaction() as tx:
                taken = await leases.take(tx, self._owner.owner, wanted)
        except leases.PartitionLocked:
            async with self._database.reading() as tx:
                log.warning("ended backends that held partitions", count=await leases.end_blockers(tx, wanted))
            return
        if taken:
            self._epochs.update((partition.partition, partition.epoch) for partition in taken)
            log.info("took partitions", count=len(taken), unclean=sum(not partition.clean for partition in taken))
            self._on_taken(taken)

    async def _renew(self, tx: Transaction) -> None:
        owned = await leases.renew(tx, self._owner.owner)
        lost = [partition for partition, epoch in self._epochs.items() if (owned or {}).get(partition) != epoch]
        for partition in lost:
            del self._epochs[partition]
        if lost:
            log.warning("lost partitions", count=len(lost))
            self._on_lost(lost, "lease")
        if owned is None:
            await leases.register(tx, self._owner.owner, self._owner.name, None)

    async def hand_over(self, tx: Transaction, partition: int, name: str) -> bool:
        """Give a partition, whose writing has ended, to the living writer of that name."""
        epoch = self._epochs.get(partition)
        if epoch is None or not await leases.hand_over(tx, self._owner.owner, partition, epoch, name):
            return False
        del self._epochs[partition]
        return True

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wakeup.wait()
        except TimeoutError:
            return
        self._wakeup.clear()
