"""The placement of partitions on room shards. Spec: none; DESIGN.md section 2.8."""

from collections.abc import Sequence

from tessera.storage.database import Transaction

_PLACE = """
INSERT INTO accounts.partition_placement (partition, shard)
SELECT p, ($2::text[])[p % cardinality($2::text[]) + 1] FROM generate_series(0, $1 - 1) AS p
WHERE NOT EXISTS (SELECT 1 FROM accounts.partition_placement)
ON CONFLICT DO NOTHING
"""
_LIST = "SELECT partition, shard FROM accounts.partition_placement"


class PlacementMismatch(Exception):
    """The database and the configuration disagree; the text says about what, in one line."""


async def settle_placement(tx: Transaction, partitions: int, shards: Sequence[str]) -> dict[int, str]:
    """The shard of each partition; a new database gets its partitions dealt out over all shards.

    Raises:
        PlacementMismatch: another number of partitions, or a shard that the configuration does not name.
    """
    await tx.execute(_PLACE, partitions, list(shards))
    return await get_placement(tx, partitions, shards)


async def get_placement(tx: Transaction, partitions: int, shards: Sequence[str]) -> dict[int, str]:
    """The shard of each partition as it is now.

    Raises:
        PlacementMismatch: there is none yet, another number of partitions, or a shard that is not in `shards`.
    """
    placement = {row[0]: row[1] for row in await tx.fetch(_LIST)}
    if not placement:
        raise PlacementMismatch("the partitions have no places yet: run `tessera migrate`")
    if len(placement) != partitions:
        raise PlacementMismatch(
            f"the database was made with {len(placement)} partitions, tessera.partitions is {partitions}:"
            " the number is fixed when the database is made"
        )
    if unknown := sorted(set(placement.values()) - set(shards)):
        raise PlacementMismatch(f"partitions lie in the shard `{unknown[0]}`, which tessera.shards does not name")
    return placement
