"""The partitions of a room shard: their heads and incarnations."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tessera.records import RecordKind
from tessera.storage.database import DatabaseUnavailable, Transaction

_ADD = """
WITH added AS (
    INSERT INTO rooms.partitions (partition) SELECT * FROM unnest($1::integer[]) ON CONFLICT DO NOTHING
    RETURNING partition
)
INSERT INTO rooms.leases (partition) SELECT partition FROM added
"""

_HEADS = "SELECT partition, incarnation, head FROM rooms.partitions WHERE partition = ANY($1::integer[])"

# The record tells every reader of the new incarnation; it belongs to no room.
_RAISE = """
WITH raised AS (
    UPDATE rooms.partitions SET incarnation = greatest(incarnation, $3) + 1, head = greatest(head, $4) + 1
    WHERE partition = $1 AND epoch = $2
    RETURNING partition, incarnation, head
), told AS (
    INSERT INTO rooms.records (partition, position, incarnation, room_id, room_previous, kind)
    SELECT partition, head, incarnation, '', 0, $5 FROM raised
)
SELECT incarnation, head FROM raised
"""

# The same for all that lie in this shard, nobody writing them.
_BEGIN_ANEW = """
WITH raised AS (
    UPDATE rooms.partitions SET incarnation = incarnation + $1, head = head + 1 WHERE state <> 'moved'
    RETURNING partition, incarnation, head
), told AS (
    INSERT INTO rooms.records (partition, position, incarnation, room_id, room_previous, kind)
    SELECT partition, head, incarnation, '', 0, $2 FROM raised
)
SELECT count(*) FROM raised
"""

_LIST = """
SELECT p.partition, p.state, coalesce(w.name, ''), coalesce(w.expires_at > clock_timestamp(), false), l.heir, p.epoch,
    p.incarnation, p.head, p.announced, p.topic_id, p.done_offset
FROM rooms.partitions p JOIN rooms.leases l USING (partition) LEFT JOIN rooms.writers w ON w.owner = l.owner
ORDER BY p.partition
"""


class PartitionMoved(DatabaseUnavailable):
    """The partition is not written in this shard any more; where it is shows in the placement soon."""


class PartitionRow(NamedTuple):
    """A partition as an operator looks at it.

    Attributes:
        state: `active` or `moved`.
        writer: the name of its owner; empty if it has none.
        is_alive: whether the owner's lease is in force.
        heir: to whom it is to be handed over; empty if to nobody.
        announced: the last position that room.log has.
        done_offset: of the topic `topic_id`, up to which commands have outcomes.
    """

    partition: int
    state: str
    writer: str
    is_alive: bool
    heir: str
    epoch: int
    incarnation: int
    head: int
    announced: int
    topic_id: str
    done_offset: int


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


async def raise_incarnation(tx: Transaction, partition: int, epoch: int, above: PartitionHead) -> PartitionHead | None:
    """Begin a new incarnation above what the log was told before this database went back in time.

    The first record of the new incarnation is a GAP of no room.

    Args:
        epoch: of the caller, who has taken the partition.
        above: where the log ends.

    Returns:
        The new head; None if the partition is somebody else's by now.
    """
    row = await tx.fetchrow(_RAISE, partition, epoch, above.incarnation, above.position, int(RecordKind.GAP))
    return None if row is None else PartitionHead(*row)


async def begin_anew(tx: Transaction, step: int) -> int:
    """Begin a new incarnation of all partitions of this shard, `step` above the last; how many they are.

    A writer that still believes to have one of them commits nothing there, as its head has moved.
    """
    count: int = await tx.fetchval(_BEGIN_ANEW, step, int(RecordKind.GAP))
    return count


async def list_partitions(tx: Transaction) -> list[PartitionRow]:
    """All partitions that lie, or lay, in this shard."""
    return [PartitionRow(*row) for row in await tx.fetch(_LIST)]
