"""Which partitions are on their way to another shard, and how far: rows of the account store beside the placement.

Spec: none; DESIGN.md section 2, invariant 8; docs/adr/0003-moving-partitions.md.
"""

from datetime import datetime
from typing import Literal, NamedTuple

from tessera.storage.database import Transaction

Phase = Literal["announced", "switched", "finished"]

_COLUMNS = "partition, source, target, phase, phase_at, extract(epoch FROM clock_timestamp() - phase_at)::float8"
_LIST = f"SELECT {_COLUMNS} FROM accounts.partition_moves ORDER BY partition"  # noqa: S608 -- constant text
_FIND_SHARD = "SELECT shard FROM accounts.partition_placement WHERE partition = $1"
_LIST_MOVING = "SELECT partition FROM accounts.partition_moves WHERE phase <> 'finished'"

# A finished move makes place for the next one; an unfinished one stays what it is.
_ANNOUNCE = f"""
WITH placed AS (
    SELECT partition, shard FROM accounts.partition_placement WHERE partition = $1 AND shard <> $2
), announced AS (
    INSERT INTO accounts.partition_moves AS m (partition, source, target) SELECT partition, shard, $2 FROM placed
    ON CONFLICT (partition) DO UPDATE SET source = excluded.source, target = excluded.target, phase = 'announced',
        phase_at = clock_timestamp()
    WHERE m.phase = 'finished'
    RETURNING {_COLUMNS}
)
SELECT * FROM announced
UNION ALL SELECT {_COLUMNS} FROM accounts.partition_moves WHERE partition = $1 AND phase <> 'finished'
"""  # noqa: S608  constant text

_SWITCH = """
WITH switched AS (
    UPDATE accounts.partition_moves SET phase = 'switched', phase_at = clock_timestamp()
    WHERE partition = $1 AND phase_at = $2 AND phase = 'announced'
    RETURNING partition, target
)
UPDATE accounts.partition_placement p SET shard = switched.target FROM switched WHERE p.partition = switched.partition
"""
_FINISH = """
UPDATE accounts.partition_moves SET phase = 'finished', phase_at = clock_timestamp()
WHERE partition = $1 AND target = $2 AND phase = 'switched'
"""
_CANCEL = "DELETE FROM accounts.partition_moves WHERE partition = $1 AND phase = 'announced'"


class PartitionMoveRow(NamedTuple):
    """A partition that moves, or has moved.

    Attributes:
        phase: see migration 0012 of the account store.
        phase_at: tells this move from others of the partition.
        seconds: since when it is in that phase, by the account store's clock.
    """

    partition: int
    source: str
    target: str
    phase: Phase
    phase_at: datetime
    seconds: float


async def list_moves(tx: Transaction) -> list[PartitionMoveRow]:
    """The last move of each partition that ever moved."""
    return [PartitionMoveRow(*row) for row in await tx.fetch(_LIST)]


async def list_moving(tx: Transaction) -> set[int]:
    """The partitions whose moves are not finished."""
    return {row[0] for row in await tx.fetch(_LIST_MOVING)}


async def find_shard(tx: Transaction, partition: int) -> str | None:
    """Where a partition lies now."""
    shard: str | None = await tx.fetchval(_FIND_SHARD, partition)
    return shard


async def announce(tx: Transaction, partition: int, target: str) -> PartitionMoveRow | None:
    """Say that a partition is to be moved; the move that now is under way, perhaps another one than this.

    Returns:
        None if the partition lies in `target` and no move is under way.
    """
    row = await tx.fetchrow(_ANNOUNCE, partition, target)
    return None if row is None else PartitionMoveRow(*row)


async def switch(tx: Transaction, move: PartitionMoveRow) -> bool:
    """Let the partition lie in its target, in one statement; False if this announced move is there no more."""
    return await tx.execute(_SWITCH, move.partition, move.phase_at) == "UPDATE 1"


async def finish(tx: Transaction, move: PartitionMoveRow) -> None:
    """The partition is written in its target."""
    await tx.execute(_FINISH, move.partition, move.target)


async def cancel(tx: Transaction, partition: int) -> bool:
    """Forget an announced move; False if there is none."""
    return await tx.execute(_CANCEL, partition) == "DELETE 1"
