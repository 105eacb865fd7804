"""How far the consumers of room.log have come, committed with what they did."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matrixcore.identifiers import RoomId
from tessera.storage.database import Transaction

MAX_ERROR_LENGTH = 500


class Cursor(NamedTuple):
    """The last record that a consumer has taken of a partition; positions rise with the incarnation too."""

    incarnation: int
    position: int


BEGINNING = Cursor(0, 0)

_LIST = "SELECT partition, incarnation, position FROM accounts.consumer_cursors WHERE consumer = $1"

# Two instances of a consumer may overlap for a moment: the cursor never goes back.
_MOVE = """
INSERT INTO accounts.consumer_cursors AS c (consumer, partition, incarnation, position)
SELECT $1, * FROM unnest($2::integer[], $3::integer[], $4::bigint[])
ON CONFLICT (consumer, partition) DO UPDATE SET incarnation = EXCLUDED.incarnation, position = EXCLUDED.position
WHERE (EXCLUDED.incarnation, EXCLUDED.position) > (c.incarnation, c.position)
"""

_MARK_STALE = """
INSERT INTO accounts.stale_rooms AS s (consumer, room_id, incarnation, position, error) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (consumer, room_id) DO NOTHING
"""

_CLEAR_STALE = "DELETE FROM accounts.stale_rooms WHERE consumer = $1 AND room_id = ANY($2::text[])"
_LIST_STALE = "SELECT consumer, room_id, error FROM accounts.stale_rooms ORDER BY consumer, room_id LIMIT $1"


async def list_cursors(tx: Transaction, consumer: str) -> dict[int, Cursor]:
    """The consumer's cursors by partition; where there is none it has taken nothing."""
    return {row[0]: Cursor(row[1], row[2]) for row in await tx.fetch(_LIST, consumer)}


async def move_cursor(tx: Transaction, consumer: str, partition: int, cursor: Cursor) -> None:
    """The consumer has taken everything up to here. Repeatable."""
    await move_cursors(tx, consumer, {partition: cursor})


async def move_cursors(tx: Transaction, consumer: str, cursors: Mapping[int, Cursor]) -> None:
    """The same for several partitions, in one statement."""
    columns = zip(*((partition, *cursors[partition]) for partition in sorted(cursors)), strict=True)
    await tx.execute(_MOVE, consumer, *columns)


async def mark_stale(tx: Transaction, consumer: str, room_id: RoomId, at: Cursor, error: str) -> None:
    """A room's records from `at` on could not be taken; the first failure is kept."""
    await tx.execute(_MARK_STALE, consumer, room_id, at.incarnation, at.position, error[:MAX_ERROR_LENGTH])


async def clear_stale(tx: Transaction, consumer: str, room_ids: Sequence[RoomId]) -> None:
    """These rooms were made anew from the shards: what could not be taken of them is done with."""
    await tx.execute(_CLEAR_STALE, consumer, list(room_ids))


async def list_stale(tx: Transaction, limit: int) -> list[tuple[str, RoomId, str]]:
    """(consumer, room, error) of rooms that wait for a rebuild."""
    return [(row[0], RoomId(row[1]), row[2]) for row in await tx.fetch(_LIST_STALE, limit)]
