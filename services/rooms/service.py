"""The room writer as a service: a writer for each shard, under one owner's name."""

import asyncio
from contextlib import AsyncExitStack
from functools import partial

from matrixcore.identifiers import ServerName
from matrixcore.signing import SigningKey
from services.rooms import metrics
from services.rooms.ownership import LeasesNotKept, Owner
from services.rooms.room_work import Signer
from services.rooms.shard_writer import ShardWriter
from tessera.bus import CommandBus, RecordBus
from tessera.clock import Clock
from tessera.fanout import Fanout
from tessera.ids import IdSource
from tessera.storage.shards import RoomShards

HOT_ROOMS_BYTES = 64 << 20
_LOCK_KEY_BITS = 63  # of a bigint, positive


class RoomWriter:
    """Owns partitions and appends to their rooms.

    Args:
        name: kept over restarts; partitions are handed over to it.
        session_locks: whether a connection is a session of its own (not behind a transaction pooler): an advisory
            lock then proves that a killed process is gone, and its partitions are taken at once.
        hot_rooms_bytes: memory for rooms, about, over all shards.
    """

    def __init__(
        self,
        *,
        server_name: ServerName,
        signing_key: SigningKey,
        shards: RoomShards,
        commands: CommandBus,
        records: RecordBus,
        fanout: Fanout,
        clock: Clock,
        ids: IdSource,
        name: str = "rooms",
        session_locks: bool = True,
        hot_rooms_bytes: int = HOT_ROOMS_BYTES,
    ) -> None:
        signer = Signer(server_name, signing_key, ids)
        lock_key = int.from_bytes(ids.random_bytes(8), "big") >> (64 - _LOCK_KEY_BITS)
        owner = Owner(name, f"{name}/{ids.token(9)}", lock_key if session_locks else None)
        metrics.PARTITIONS_IN_ALL.set(shards.partitions)
        self.writers = tuple(
            ShardWriter(
                shard,
                shards.databases[shard],
                partial(shards.partitions_of, shard),
                owner,
                signer=signer,
                commands=commands,
                records=records,
                fanout=fanout,
                clock=clock,
                hot_rooms_bytes=hot_rooms_bytes // len(shards.names),
            )
            for shard in shards.names
        )

    async def run(self) -> None:
        """Write until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            for writer in self.writers:
                tasks.create_task(writer.run())

    async def wait_ready(self) -> None:
        """Until the free partitions have been taken for the first time."""
        for writer in self.writers:
            await writer.ready.wait()

    async def check_leases(self) -> None:
        """For /ready: of several shards some may be away. Raises LeasesNotKept."""
        troubles: list[LeasesNotKept] = []
        for writer in self.writers:
            try:
                await writer.check_leases()
            except LeasesNotKept as trouble:
                troubles.append(trouble)
        if len(troubles) == len(self.writers):
            raise troubles[0]

    async def drain(self) -> None:
        """Hand the partitions over to the other living writers, one at a time in each shard."""
        async with asyncio.TaskGroup() as tasks:
            for writer in self.writers:
                tasks.create_task(writer.drain())

    async def stop(self) -> None:
        """Finish the batches, release the leases and end `run`."""
        async with AsyncExitStack() as stack:
            for writer in self.writers:
                stack.push_async_callback(writer.stop)
