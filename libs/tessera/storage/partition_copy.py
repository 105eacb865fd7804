"""A partition's rows on their way from one room shard to another.

The row of `rooms.partitions` fences everything: at the source it says `moved` under a new epoch, so that nobody
commits there any more; at the target it says so too until the rows are there and every process reads them there. An
epoch above the source's tells that the copy at the target is whole, as it is written in the copy's transaction.

Spec: none; DESIGN.md section 2, invariants 1 and 8; docs/adr/0003-moving-partitions.md.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from tessera.storage.database import Transaction

COPY_SECONDS = 6 * 3600.0  # of one table
CHUNKS = 32  # of one table on their way, 64 KiB each or one row
DELETE_ROWS = 5_000  # at once
UNINDEXED = frozenset(("outcomes", "command_attempts", "dead_letters"))  # read as a whole: not in pieces

# Tables by how their rows belong to a partition; rooms last, as the others are found by them. What is in neither
# belongs to the shard and stays.
BY_PARTITION = ("records", "outcomes", "command_attempts", "dead_letters", "inbox")
BY_ROOM = (
    "events", "event_edges", "current_state", "state_history", "forked_states", "room_servers", "threads",
    "mentions", "receipts", "missing_events", "search", "backward_extremities",
)  # fmt: skip
OF_THE_SHARD = frozenset(("partitions", "leases", "writers", "schema_revision", "fetches", "joins", "join_events"))
COPIED = ("rooms", *BY_PARTITION, *BY_ROOM)

_TABLES = """
SELECT c.table_name, array_agg(c.column_name::text ORDER BY c.ordinal_position)
FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
WHERE c.table_schema = 'rooms' AND t.table_type = 'BASE TABLE'
GROUP BY c.table_name
"""
_DATABASE = """
SELECT system_identifier::text || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
FROM pg_control_system()
"""
_FIND = """
SELECT partition, state, epoch, incarnation, head, announced, topic_id, done_offset, clean
FROM rooms.partitions WHERE partition = $1
"""
# The lease goes too: the writer learns of it at its next renewal, if no failed commit tells it before.
_FENCE = """
WITH fenced AS (
    UPDATE rooms.partitions SET state = 'moved', epoch = epoch + 1 WHERE partition = $1 AND state = 'active'
    RETURNING partition, epoch
)
UPDATE rooms.leases l SET owner = '', heir = '', epoch = fenced.epoch FROM fenced WHERE l.partition = fenced.partition
"""
_MAKE_PLACE = """
WITH made AS (
    INSERT INTO rooms.partitions (partition, state) VALUES ($1, 'moved') ON CONFLICT DO NOTHING RETURNING partition
)
INSERT INTO rooms.leases (partition) SELECT partition FROM made
"""
_LOCK = "SELECT epoch FROM rooms.partitions WHERE partition = $1 AND state = 'moved' FOR UPDATE"
_TAKE_OVER = """
UPDATE rooms.partitions SET epoch = $2 + 1, incarnation = $3, head = $4, announced = $5, topic_id = $6,
    done_offset = $7, clean = $8
WHERE partition = $1
"""
_ACTIVATE = """
WITH activated AS (
    UPDATE rooms.partitions SET state = 'active', epoch = epoch + 1 WHERE partition = $1 AND state = 'moved'
    RETURNING partition, epoch
)
UPDATE rooms.leases l SET owner = '', heir = '', epoch = activated.epoch FROM activated
WHERE l.partition = activated.partition
"""
# Who inserts without a guard by the head has this lock before the statement looks at the partition's state.
_LIST_WRITING = """
SELECT DISTINCT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND relation = ANY('{rooms.inbox,rooms.outcomes,rooms.dead_letters,rooms.command_attempts}'::regclass[])
"""
_IN_PARTITION = "partition = $1"
_IN_ROOMS = "room_id IN (SELECT room_id FROM rooms.rooms WHERE partition = $1)"
# By the inbox where rooms are not known yet; its rows name the partition.
_IN_INBOX = "inbox_id IN (SELECT inbox_id FROM rooms.inbox WHERE partition = $1)"
_LIST_MOVED = "SELECT partition, epoch FROM rooms.partitions WHERE state = 'moved' ORDER BY partition"

Progress = Callable[[str, int], None]
"""Told a table and how many of its rows are copied."""


class CannotCopy(Exception):
    """The two databases do not fit together; one line."""


class PartitionState(NamedTuple):
    """A partition's row as it is moved."""

    partition: int
    state: str
    epoch: int
    incarnation: int
    head: int
    announced: int
    topic_id: str
    done_offset: int
    clean: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """What is compared of two databases before rows go from one to the other.

    Attributes:
        database: which one it is, whatever name it was reached by.
        columns: by table.
    """

    database: str
    columns: Mapping[str, tuple[str, ...]]


async def read_layout(tx: Transaction) -> Layout:
    """The tables of a room shard.

    Raises:
        CannotCopy: there is one that this release does not know.
    """
    columns = {row[0]: tuple(row[1]) for row in await tx.fetch(_TABLES)}
    if unknown := sorted(columns.keys() - set(COPIED) - OF_THE_SHARD):
        raise CannotCopy(f"this release does not know the table rooms.{unknown[0]}")
    return Layout(await tx.fetchval(_DATABASE), columns)


async def find_partition(tx: Transaction, partition: int) -> PartitionState | None:
    """The row of a partition that lies, or lay, in this shard."""
    row = await tx.fetchrow(_FIND, partition)
    return None if row is None else PartitionState(*row)


async def list_moved(tx: Transaction) -> dict[int, int]:
    """The epochs of the partitions that do not lie here, or do not yet."""
    return {row[0]: row[1] for row in await tx.fetch(_LIST_MOVED)}


async def fence(tx: Transaction, partition: int) -> None:
    """Let nobody commit in this partition any more; nothing changes if that is so."""
    await tx.execute(_FENCE, partition)


async def list_writing(tx: Transaction) -> set[str]:
    """The transactions that write now what no head guards.

    Those that are among them after the fence may not have seen it: what they write is to be waited for. Whoever
    begins later sees it, and writes nothing (`PartitionMoved`).
    """
    return {row[0] for row in await tx.fetch(_LIST_WRITING)}


async def make_place(tx: Transaction, partition: int) -> None:
    """Give a shard the row of a partition that is to come, in the state `moved`; nothing changes if it is there."""
    await tx.execute(_MAKE_PLACE, partition)


async def activate(tx: Transaction, partition: int) -> None:
    """Let the partition be written here, under an epoch of its own; nothing changes if it is."""
    await tx.execute(_ACTIVATE, partition)


async def copy_partition(
    source: Transaction, target: Transaction, columns: Mapping[str, tuple[str, ...]], partition: int, progress: Progress
) -> None:
    """Copy everything of a fenced partition, in place of what is left of it there.

    Args:
        source: one snapshot, in which the partition is fenced.
        target: a transaction for this alone; it has the partition's row (`make_place`).
        columns: of both databases.
    """
    state = await find_partition(source, partition)
    if state is None or state.state != "moved":
        raise CannotCopy(f"partition {partition} is still written at its source")
    if await target.fetchval(_LOCK, partition) is None:
        raise CannotCopy(f"partition {partition} is written at the target already")
    for table in (*reversed(BY_ROOM), *reversed(BY_PARTITION), "rooms"):
        await target.execute(f"DELETE FROM rooms.{table} WHERE {_rows_of(table)}", partition, timeout=COPY_SECONDS)  # noqa: S608  constant text
    for table in COPIED:
        where = _rows_of(table).replace("$1", str(partition))  # COPY takes no parameters
        query = f"SELECT {', '.join(columns[table])} FROM rooms.{table} WHERE {where}"  # noqa: S608  constant text
        progress(table, await _copy_rows(source, target, query, table, columns[table]))
    await target.execute(_TAKE_OVER, partition, *state[2:])


async def delete_leftovers(tx: Transaction, partition: int, epoch: int, table: str) -> int | None:
    """Delete some rows of a partition that has moved away; how many, None if it is no more as it was.

    Args:
        tx: a transaction for this alone.
        epoch: `list_moved`; another one means that the partition is coming back.
        table: of `COPIED` in reverse, as rooms are deleted last.
    """
    if await tx.fetchval(_LOCK, partition) != epoch:
        return None
    where = _rows_of(table)
    if table not in UNINDEXED:
        where = f"ctid = ANY(ARRAY(SELECT ctid FROM rooms.{table} WHERE {where} LIMIT {DELETE_ROWS}))"  # noqa: S608  constant text
    tag = await tx.execute(f"DELETE FROM rooms.{table} WHERE {where}", partition, timeout=COPY_SECONDS)  # noqa: S608  constant text
    return int(tag.split()[1])


def _copying(tx: Transaction) -> Any:
    """COPY is what every connection behind a Transaction can do besides."""
    return cast("Any", tx)


def _rows_of(table: str) -> str:
    if table == "missing_events":
        return _IN_INBOX
    return _IN_ROOMS if table in BY_ROOM else _IN_PARTITION


async def _copy_rows(source: Transaction, target: Transaction, query: str, table: str, columns: tuple[str, ...]) -> int:
    """Stream the rows of a query into a table; at most `CHUNKS` chunks are in memory. How many rows they were."""
    chunks: asyncio.Queue[bytes | None] = asyncio.Queue(CHUNKS)

    async def read() -> None:
        await _copying(source).copy_from_query(query, output=chunks.put, format="binary", timeout=COPY_SECONDS)
        await chunks.put(None)

    async def arriving() -> AsyncIterator[bytes]:
        while (chunk := await chunks.get()) is not None:
            yield chunk

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        written = tasks.create_task(
            _copying(target).copy_to_table(
                table,
                source=arriving(),
                schema_name="rooms",
                columns=list(columns),
                format="binary",
                timeout=COPY_SECONDS,
            )
        )
    return int(written.result().split()[1])
