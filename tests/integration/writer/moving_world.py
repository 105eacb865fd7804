"""Two room shards and an account store, on which processes of their own beliefs write and send."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from writer_world import KEY, SERVER, TIMEOUT_SECONDS, RememberingFanout, World, message

from matrixcore.identifiers import RoomId
from services.rooms.service import RoomWriter
from tessera.bus import LocalCommandBus, LocalRecordBus
from tessera.clock import SystemClock
from tessera.commands import Command, OutcomeStatus
from tessera.ids import IdSource
from tessera.moving import PartitionMover
from tessera.placement_following import PlacementFollower
from tessera.room_commands import CommandUnanswered, RoomCommands
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.partitions import add_partitions
from tessera.storage.placement import settle_placement
from tessera.storage.records import list_records
from tessera.storage.shards import RoomShards

PARTITIONS = 2
LOOK_SECONDS = 0.05
FIRST, SECOND = "first", "second"


@dataclass(slots=True)
class MovingWorld:
    """The stores, the topics and the fan-out that all processes share."""

    accounts: Database
    databases: Mapping[str, Database]
    bus: LocalCommandBus = field(default_factory=lambda: LocalCommandBus("topic"))
    records: LocalRecordBus = field(default_factory=LocalRecordBus)
    fanout: RememberingFanout = field(default_factory=RememberingFanout)
    ids: IdSource = field(default_factory=IdSource)

    @asynccontextmanager
    async def shards(self, *, following: bool = True) -> AsyncIterator[RoomShards]:
        """What a process believes of the placement; one that does not follow believes what it saw first."""
        async with self.accounts.transaction() as tx:
            placement = await settle_placement(tx, PARTITIONS, [FIRST, SECOND])
        shards = RoomShards(self.databases, placement, PARTITIONS)
        if not following:
            yield shards
            return
        follower = PlacementFollower(self.accounts, shards, SystemClock(), look_seconds=LOOK_SECONDS)
        running = asyncio.create_task(follower.run())
        await follower.has_looked.wait()
        try:
            yield shards
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    @asynccontextmanager
    async def gateway(self, *, following: bool = True) -> AsyncIterator[World]:
        """A process that sends commands."""
        async with self.shards(following=following) as shards:
            commands = RoomCommands(self.bus, self.fanout, ShardOutcomes(shards))
            await commands.start()
            polling = asyncio.create_task(commands.poll_overdue())
            try:
                yield World(shards, commands, self.bus, self.records, self.fanout, self.ids)
            finally:
                polling.cancel()
                await asyncio.gather(polling, return_exceptions=True)
                await commands.stop()

    @asynccontextmanager
    async def writer(self, name: str, *, following: bool = True) -> AsyncIterator[RoomWriter]:
        """A process that writes rooms."""
        async with AsyncExitStack() as stack:
            shards = await stack.enter_async_context(self.shards(following=following))
            service = RoomWriter(
                server_name=SERVER,
                signing_key=KEY,
                shards=shards,
                commands=self.bus,
                records=self.records,
                fanout=self.fanout,
                clock=SystemClock(),
                ids=self.ids,
                name=name,
            )
            running = asyncio.create_task(service.run())
            await service.wait_ready()
            try:
                yield service
            finally:
                await service.stop()
                await running

    def mover(self, **more: float) -> PartitionMover:
        """A move whose processes hear of everything within a moment."""
        seconds = {"announced_seconds": 0.3, "switched_seconds": 0.3, **more}
        return PartitionMover(self.accounts, self.databases, SystemClock(), lambda _line: None, **seconds)

    async def bodies(self, room_id: RoomId, shard: str) -> list[str]:
        """The events of a room in order, as they lie in a shard."""
        rows = await self.databases[shard].fetch(
            "SELECT convert_from(pdu, 'UTF8')::json -> 'content' ->> 'body' FROM rooms.events"
            " WHERE room_id = $1 AND type = 'm.room.message' ORDER BY anchor",
            room_id,
        )
        return [row[0] for row in rows]

    async def positions(self, partition: int, shard: str) -> list[int]:
        """The positions of a partition's records, as they lie in a shard."""
        async with self.databases[shard].reading() as tx:
            return [record.position for record in await list_records(tx, partition, 0, 1 << 40, 100_000)]


@asynccontextmanager
async def make_moving_world(accounts: Database, first: Database, second: Database) -> AsyncIterator[MovingWorld]:
    """All partitions lie in the first shard."""
    async with accounts.transaction() as tx:
        await settle_placement(tx, PARTITIONS, [FIRST])
    async with first.transaction() as tx:
        await add_partitions(tx, range(PARTITIONS))
    yield MovingWorld(accounts, {FIRST: first, SECOND: second})


async def send_for_sure(gateway: World, room_id: RoomId, text: str) -> int:
    """Send until it is answered, always under one id; how many times."""
    command: Command = gateway.command(room_id, message(text))
    for tries in range(1, 100):
        try:
            outcome = await gateway.commands.submit(command, timeout_seconds=TIMEOUT_SECONDS)
        except (CommandUnanswered, DatabaseUnavailable):
            continue
        assert outcome.status is OutcomeStatus.ACCEPTED, outcome.error
        return tries
    raise AssertionError("never answered")
