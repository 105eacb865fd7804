"""Where a consumer of room.log begins that tells others what happens, and has never run before."""

from tessera.storage import consumer_cursors
from tessera.storage.consumer_cursors import Cursor
from tessera.storage.database import Database
from tessera.storage.partitions import list_heads
from tessera.storage.shards import RoomShards


async def begin_at_the_heads(accounts: Database, shards: RoomShards, consumer: str) -> None:
    """Let a consumer that runs for the first time tell nothing of what was said before. Repeatable.

    Raises:
        DatabaseUnavailable
    """
    async with accounts.reading() as tx:
        known = await consumer_cursors.list_cursors(tx, consumer)
    cursors: dict[int, Cursor] = {}
    for name in shards.names:
        missing = [partition for partition in shards.partitions_of(name) if partition not in known]
        if not missing:  # the shard may even be away
            continue
        async with shards.databases[name].reading() as tx:
            heads = await list_heads(tx, missing)
        cursors |= {partition: Cursor(head.incarnation, head.position) for partition, head in heads.items()}
    if cursors:
        async with accounts.reading() as tx:
            await consumer_cursors.move_cursors(tx, consumer, cursors)
