"""Keeping the leases of one shard: taking a fair share, staying alive, handing over.

It has a connection of its own, on which the process's advisory lock lives.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from services.rooms.shares import Gift, choose_free, fair_share, next_gift
from tessera.clock import Clock
from tessera.storage import leases
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.leases import LEASE_SECONDS, TakenPartition

log = structlog.get_logger(__name__)

RENEW_SECONDS = 1.0
LOOK_SECONDS = 0.25  # how often partitions of others are looked at
BUSY_LOOK_SECONDS = 0.02  # the same while partitions come to us one after the other
BUSY_SECONDS = 1.0
STATEMENT_SECONDS = 3.0
TAKEN_SECONDS = 2.0  # how long the taking of what was given is waited for

Give = Callable[[int, str], Awaitable[bool]]
"""Ends the writing of a partition and gives it to a writer by name or owner; False if it stays here."""


class LeasesNotKept(Exception):
    """The leases of a shard have not been renewed for too long."""


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
    """The leases of one shard. The callbacks begin and end the writing of a partition.

    Args:
        placed: the partitions that lie in this shard now.
    """

    def __init__(
        self,
        database: Database,
        owner: Owner,
        placed: Callable[[], Sequence[int]],
        clock: Clock,
        *,
        on_taken: Callable[[Sequence[TakenPartition]], None],
        on_lost: Callable[[Collection[int], str], None],
    ) -> None:
        self._database = database
        self._owner = owner
        self._placed = placed
        self._clock = clock
        self._on_taken = on_taken
        self._on_lost = on_lost
        self._epochs: dict[int, int] = {}  # in the order in which they came
        self._heirs: dict[int, str] = {}
        self._share = 0
        self._is_draining = False
        self._busy_until = clock.monotonic()
        self._renewed_at = clock.monotonic()
        self._wakeup = asyncio.Event()
        self._may_give = asyncio.Event()
        self._giving = asyncio.Lock()
        self._stopping = False
        self.ready = asyncio.Event()  # a first look at the leases has been taken, or is impossible now

    @property
    def epochs(self) -> dict[int, int]:
        """The partitions that are ours, with their epochs."""
        return self._epochs

    async def check(self) -> None:
        """For /ready. Raises LeasesNotKept."""
        if (seconds := self._clock.monotonic() - self._renewed_at) > LEASE_SECONDS:
            raise LeasesNotKept(f"leases were last renewed {seconds:.0f} s ago")

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
                async with self._database.reading(is_kept=True) as tx:
                    await self._keep(tx)
            except (DatabaseUnavailable, OSError, TimeoutError) as error:
                log.warning("leases cannot be kept", error=str(error) or type(error).__name__)
                self.ready.set()  # of several shards one may be away
                await self._clock.sleep(LOOK_SECONDS)
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
            await self._renew(tx)
        while not self._stopping:
            async with asyncio.timeout(STATEMENT_SECONDS + LEASE_SECONDS):
                await self._take_free(tx)
                if self._clock.monotonic() - self._renewed_at >= RENEW_SECONDS * 0.9:
                    await self._renew(tx)
            self.ready.set()
            await self._pause(self._pause_seconds())
        async with asyncio.timeout(STATEMENT_SECONDS):
            await leases.release(tx, self._owner.owner, self._epochs)
            await leases.unregister(tx, self._owner.owner, self._owner.lock_key)
        self._epochs = {}

    def _pause_seconds(self) -> float:
        if len(self._epochs) == len(self._placed()):
            return RENEW_SECONDS
        return BUSY_LOOK_SECONDS if self._clock.monotonic() < self._busy_until else LOOK_SECONDS

    async def _take_free(self, tx: Transaction) -> None:
        wanted = [partition for partition in self._placed() if partition not in self._epochs]
        if not wanted:
            return
        free = await leases.list_free(tx, self._owner.owner, wanted)
        if not all(free.values()) and len(self._epochs) >= self._share:
            # Somebody has gone, so that the shares are larger now.
            await self._look_at_share(tx)
        chosen = choose_free(free, len(self._epochs), self._share, self._owner.owner)
        if not chosen:
            return
        try:
            async with self._database.transaction() as taking:
                taken = await leases.take(taking, self._owner.owner, chosen)
        except leases.PartitionLocked:
            async with self._database.reading() as ending:
                log.warning("ended backends that held partitions", count=await leases.end_blockers(ending, chosen))
            return
        if taken:
            self._busy_until = self._clock.monotonic() + BUSY_SECONDS
            self._epochs.update((partition.partition, partition.epoch) for partition in taken)
            log.info("took partitions", count=len(taken), unclean=sum(not partition.clean for partition in taken))
            self._on_taken(taken)

    async def _renew(self, tx: Transaction) -> None:
        renewed = await leases.renew(tx, self._owner.owner)
        if renewed is None:
            await leases.register(tx, self._owner.owner, self._owner.name, None)
            renewed = leases.Renewed({}, {}, self._is_draining)
        lost = [partition for partition, epoch in self._epochs.items() if renewed.epochs.get(partition) != epoch]
        for partition in lost:
            del self._epochs[partition]
        if lost:
            log.warning("lost partitions", count=len(lost))
            self._on_lost(lost, "lease")
        self._heirs = {partition: name for partition, name in renewed.heirs.items() if partition in self._epochs}
        self._is_draining = renewed.is_draining
        await self._look_at_share(tx)
        self._renewed_at = self._clock.monotonic()
        if self._heirs or len(self._epochs) > self._share:
            self._may_give.set()

    async def _look_at_share(self, tx: Transaction) -> None:
        self._share = fair_share(len(self._placed()), await leases.list_writers(tx), self._owner.owner)

    # Giving

    async def run_giving(self, give: Give) -> None:
        """Run for ever: hand over what was asked for and what is more than our share, one partition at a time."""
        while True:
            await self._may_give.wait()
            self._may_give.clear()
            try:
                await self._give_surplus(give)
            except Exception as error:  # whatever it was: what is still too much shows at the next renewal
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError from error
                known = isinstance(error, DatabaseUnavailable | OSError | TimeoutError)
                log.warning("a partition was not handed over", error=repr(error), exc_info=not known)

    async def drain(self, give: Give) -> None:
        """Hand everything over to the living writers; returns at once if there are none.

        What cannot be handed over is released at the end.
        """
        async with self._database.reading() as tx:
            await leases.set_draining(tx, self._owner.owner)
        self._is_draining = True
        self._share = 0
        while not (await self._give_surplus(give) and await self._has_nothing_to_give()):
            self._wakeup.set()  # what was handed over to us a moment ago must be taken before it can be given
            await self._clock.sleep(BUSY_LOOK_SECONDS)

    async def _has_nothing_to_give(self) -> bool:
        """Whether no partition is ours, not even one that was handed over and is not taken yet; or nobody takes any."""
        async with self._database.reading() as tx:
            writers = await leases.list_writers(tx)
        ours = any(writer.partitions for writer in writers if writer.owner == self._owner.owner)
        return not ours or all(writer.is_draining for writer in writers)

    async def _give_surplus(self, give: Give) -> bool:
        """Give away what can be given; False if a partition could not be given just now."""
        async with self._giving:
            while (gift := await self._next_gift()) is not None:
                epoch = self._epochs.get(gift.partition)
                is_given = epoch is not None and await give(gift.partition, gift.heir)
                is_asked = self._heirs.pop(gift.partition, None) is not None
                async with self._database.reading() as tx:
                    if is_given and epoch is not None:
                        await self._until_taken(tx, gift, epoch)
                    elif is_asked:
                        log.warning("not handed over as asked", partition=gift.partition, heir=gift.heir)
                        await leases.forget_heir(tx, self._owner.owner, gift.partition)
                    else:
                        return False
        return True

    async def _next_gift(self) -> Gift | None:
        if self._stopping or not self._epochs:
            return None
        async with self._database.reading() as tx:
            writers = await leases.list_writers(tx)
        share = 0 if self._is_draining else fair_share(len(self._placed()), writers, self._owner.owner)
        return next_gift(list(self._epochs), self._heirs, writers, self._owner.owner, share)

    async def _until_taken(self, tx: Transaction, gift: Gift, epoch: int) -> None:
        """Wait until the heir has it, so that one partition pauses at a time."""
        given_at = self._clock.monotonic()
        while not await leases.is_taken(tx, gift.partition, epoch):
            if self._clock.monotonic() - given_at > TAKEN_SECONDS:
                log.warning("handed over, not taken yet", partition=gift.partition, heir=gift.heir)
                return
            await self._clock.sleep(BUSY_LOOK_SECONDS)

    async def hand_over(self, tx: Transaction, partition: int, name: str) -> bool:
        """Give a partition, whose writing has ended, to the living writer of that name or owner."""
        epoch = self._epochs.get(partition)
        if epoch is None or not await leases.hand_over(tx, self._owner.owner, partition, epoch, name):
            return False
        self._epochs.pop(partition, None)
        return True

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wakeup.wait()
        except TimeoutError:
            return
        self._wakeup.clear()
