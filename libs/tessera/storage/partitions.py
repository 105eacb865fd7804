"""The partitions of a room shard: their heads and incarnations."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tessera.storage.database import Transaction

_ADD = """
WITH added AS (
    INSERT INTO rooms.partitions (partition) SELECT * FROM unnest($1::integer[]) ON CONFLICT DO NOTHING
    RETURNING partition
)
INSERT INTO rooms.leases (partition) SELECT partition FROM added
"""

_HEADS = "SELECT partition, incarnation, head FROM rooms.partitions WHERE partition = ANY($1::integer[])"


class PartitionHead(NamedTuple):
    """The last position of a partition."""

    incarnation: int
    position: int


async def add_partitions(tx: Transaction, partitions: Iterable[int]) -> None:
    """Make the rows of partitions that lie in this shard; those that are there stay as they are."""
    await tx.execute(_ADD, sorted(partitions))


async def list_heads(tx: Transaction, partitions: Sequence[int]) -> dict[int, PartitionHead]:
    """The heads of those of the partitions that lie in this shard."""
    return {row[0]: PartitionHead(row[1], row[2]) for row in await tx.fetch(_HEADS, list(partitions))}
