"""How far the writers have come with the commands of each partition, for those who send them."""

import asyncio
from collections.abc import Sequence

import structlog

from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

_LIST = "SELECT partition, topic_id, done_offset FROM rooms.partitions WHERE partition = ANY($1::integer[])"


async def list_done_offsets(tx: Transaction, partitions: Sequence[int]) -> dict[int, tuple[str, int]]:
    """(id of the topic, done offset) of those of the partitions that lie in this shard."""
    return {row[0]: (row[1], row[2]) for row in await tx.fetch(_LIST, list(partitions))}


class ShardDoneOffsets:
    """The done offsets over all shards; those of a shard that does not answer are left out."""

    def __init__(self, shards: RoomShards) -> None:
        self._shards = shards

    async def __call__(self, partitions: Sequence[int]) -> dict[int, tuple[str, int]]:
        """(id of the topic, done offset) of each partition that can be read."""
        by_shard: dict[str, list[int]] = {}
        for partition in partitions:
            by_shard.setdefault(self._shards.believed_shard_of(partition), []).append(partition)
        parts = await asyncio.gather(
            *(self._read(self._shards.databases[shard], own) for shard, own in by_shard.items())
        )
        return {partition: done for part in parts for partition, done in part.items()}

    async def _read(self, database: Database, partitions: Sequence[int]) -> dict[int, tuple[str, int]]:
        try:
            async with database.reading() as tx:
                return await list_done_offsets(tx, partitions)
        except (DatabaseUnavailable, OSError, TimeoutError) as error:
            log.warning("done offsets not read", error=str(error) or type(error).__name__)
            return {}
