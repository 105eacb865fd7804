"""Sharing the partitions of room.log out among the processes that consume it.

Every process that has a consumer aims at its fair share of that consumer's partitions: it takes what nobody alive has,
and gives up what is more. A dead process is followed after its lease.

Spec: none; DESIGN.md section 2, invariant 1.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import structlog

from tessera.clock import Clock
from tessera.storage import consumer_leases
from tessera.storage.consumer_leases import LEASE_SECONDS, Share
from tessera.storage.database import Database, DatabaseUnavailable

log = structlog.get_logger(__name__)

RENEW_SECONDS = 1.0
STATEMENT_SECONDS = 3.0


class LeasedConsumer(Protocol):
    """What is shared out: a `RecordConsumer`, or whatever else divides its work into as many parts."""

    name: str

    @property
    def partitions(self) -> frozenset[int]:
        """What it has."""

    def take_on(self, partitions: Iterable[int]) -> None:
        """Work on these too."""

    async def give_up(self, partitions: Collection[int]) -> None:
        """Work on these no longer; when it returns, another process may."""


class LeasesNotKept(Exception):
    """The leases of this process have not been renewed for too long."""


class ConsumerLeases:
    """Gives each consumer of a process its partitions.

    Args:
        owner: of this process alone (a name and a nonce).
        partitions: of room.log.
    """

    def __init__(
        self, accounts: Database, clock: Clock, owner: str, consumers: Sequence[LeasedConsumer], partitions: int
    ) -> None:
        self._accounts = accounts
        self._clock = clock
        self._owner = owner
        self._consumers = {consumer.name: consumer for consumer in consumers}
        self._partitions = partitions
        self._renewed_at = clock.monotonic()
        self._round = asyncio.Lock()
        self._stopping = asyncio.Event()

    async def check(self) -> None:
        """For /ready. Raises LeasesNotKept."""
        if (seconds := self._clock.monotonic() - self._renewed_at) > LEASE_SECONDS:
            raise LeasesNotKept(f"leases were last renewed {seconds:.0f} s ago")

    async def run(self) -> None:
        """Run until `stop`; while the account store is away consumers wait for it themselves."""
        is_known = False
        while not self._stopping.is_set():
            try:
                async with self._round, asyncio.timeout(STATEMENT_SECONDS):
                    if self._stopping.is_set():
                        return
                    if not is_known:
                        await self._register()
                    is_known = await self._renew()
                self._renewed_at = self._clock.monotonic()
            except (DatabaseUnavailable, OSError, TimeoutError) as error:
                log.warning("consumer leases not renewed", error=str(error) or type(error).__name__)
                is_known = False
            await self._clock.sleep(RENEW_SECONDS if is_known else RENEW_SECONDS / 4)

    async def stop(self) -> None:
        """Give everything up, so that the others need not wait for the lease."""
        self._stopping.set()
        try:
            async with self._round:
                for consumer in self._consumers.values():
                    await consumer.give_up(consumer.partitions)
                async with self._accounts.transaction() as tx:
                    await consumer_leases.unregister(tx, self._owner)
        except (DatabaseUnavailable, OSError, TimeoutError) as error:
            log.warning("consumer leases not released", error=str(error) or type(error).__name__)

    async def _register(self) -> None:
        async with self._accounts.transaction() as tx:
            await consumer_leases.register(tx, self._owner, list(self._consumers), self._partitions)

    async def _renew(self) -> bool:
        """False if the owner's row is gone: then others may have taken everything."""
        async with self._accounts.reading() as tx:
            shares = await consumer_leases.renew(tx, self._owner)
        for name, consumer in self._consumers.items():
            share = (shares or {}).get(name, Share(frozenset(), 0, 0))
            await self._settle(consumer, share)
        return shares is not None

    async def _settle(self, consumer: LeasedConsumer, share: Share) -> None:
        """Bring what a consumer does to what it should do."""
        lost = consumer.partitions - share.partitions
        if lost:
            await consumer.give_up(lost)
        mine = share.partitions
        if len(mine) > share.fair:
            surplus = sorted(mine)[share.fair :]
            await self._release(consumer, surplus)
            mine = mine.difference(surplus)
        elif len(mine) < share.fair and share.free:
            async with self._accounts.reading() as tx:
                taken = await consumer_leases.take(tx, self._owner, consumer.name, share.fair - len(mine))
            if taken:
                log.info("took partitions", consumer=consumer.name, count=len(taken))
            mine = mine.union(taken)
        if new := mine - consumer.partitions:
            consumer.take_on(new)

    async def _release(self, consumer: LeasedConsumer, partitions: Collection[int]) -> None:
        """First stop and write the cursors, then let others have them."""
        await consumer.give_up(partitions)
        async with self._accounts.reading() as tx:
            await consumer_leases.release(tx, self._owner, consumer.name, list(partitions))
        log.info("gave partitions up", consumer=consumer.name, count=len(partitions))
