"""Deleting old messages of a room from its shard, slice by slice.

State stays, and with it every auth chain; so do the forward extremities, the last event that was to go and the last of
each thread that goes on, which carry the cumulative counters that unread counts are computed from. The positions of the
records stay dense: a record of a deleted event says `purged`.

Spec: none; DESIGN.md section 4.
"""

from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, ServerName
from tessera.records import OrderKey, RecordKind
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import LOWEST

SLICE = 500  # events looked at by one statement

# Who writes without the writer's guard holds this lock before the partition's state is looked at: see partition_copy.
_LOCK = "LOCK TABLE rooms.command_attempts IN ROW EXCLUSIVE MODE"

_MARK = """
UPDATE rooms.rooms r SET purged_anchor = greatest(r.purged_anchor, $2) FROM rooms.partitions p
WHERE r.room_id = $1 AND p.partition = r.partition AND p.state = 'active'
RETURNING r.partition
"""

_LAST_BY_TIME = """
SELECT anchor FROM rooms.events WHERE room_id = $1 AND anchor IS NOT NULL AND origin_server_ts < $2
ORDER BY origin_server_ts DESC, anchor DESC, sub DESC LIMIT 1
"""

_ANCHOR_OF = "SELECT anchor, sub FROM rooms.events WHERE room_id = $1 AND event_id = $2 AND anchor IS NOT NULL"

_NEWEST = """
SELECT event_id, anchor FROM rooms.events WHERE room_id = $1 AND anchor IS NOT NULL AND anchor <= $2 AND sub = 0
ORDER BY anchor DESC, sub DESC LIMIT 1
"""

_DELETE_SLICE = f"""
WITH slice AS MATERIALIZED (
    SELECT event_id, anchor, sub, state_key, sender, thread_root FROM rooms.events
    WHERE room_id = $1 AND anchor IS NOT NULL AND (anchor, sub) > ($2, $3) AND anchor <= $4
    ORDER BY anchor, sub LIMIT {SLICE}
), ends AS (
    SELECT unnest(forward_extremities) AS event_id FROM rooms.rooms WHERE room_id = $1
), gone AS (
    DELETE FROM rooms.events e USING slice s
    WHERE e.room_id = $1 AND e.event_id = s.event_id AND s.state_key IS NULL AND s.event_id <> $6
      AND s.event_id NOT IN (SELECT event_id FROM ends)
      AND ($7 = '' OR right(s.sender, length($7)) <> $7)
      AND NOT (
          s.thread_root IS NOT NULL
          AND EXISTS (
              SELECT FROM rooms.threads t
              WHERE t.room_id = $1 AND t.thread_root = s.thread_root AND t.latest_anchor > $4
          )
          AND NOT EXISTS (
              SELECT FROM rooms.events n
              WHERE n.room_id = $1 AND n.thread_root = s.thread_root AND n.anchor > s.anchor AND n.anchor <= $4
          )
      )
    RETURNING e.event_id, e.anchor, e.sub
), blanked AS (
    UPDATE rooms.records r SET kind = {int(RecordKind.PURGED)}, event_id = NULL, body = NULL FROM gone g
    WHERE r.partition = $5 AND r.position = g.anchor AND g.sub = 0 AND r.room_id = $1
), edges AS (
    DELETE FROM rooms.event_edges d USING gone g WHERE d.room_id = $1 AND d.prev_event_id = g.event_id
), forks AS (
    DELETE FROM rooms.forked_states f USING gone g WHERE f.room_id = $1 AND f.event_id = g.event_id
)
SELECT anchor, sub, (SELECT count(*) FROM gone) FROM slice ORDER BY anchor DESC, sub DESC LIMIT 1
"""  # noqa: S608  constant text

_DELETE_MENTIONS = "DELETE FROM rooms.mentions WHERE room_id = $1 AND anchor <= $2"
_DELETE_THREADS = "DELETE FROM rooms.threads WHERE room_id = $1 AND latest_anchor <= $2"

# The originals of redacted events whose redactions came before a time.
_DROP_ORIGINALS = """
UPDATE rooms.events e SET original_pdu = NULL FROM (
    SELECT o.room_id, o.event_id FROM rooms.events o
    LEFT JOIN rooms.events r ON r.room_id = o.room_id AND r.event_id = o.redacted_by
    WHERE o.original_pdu IS NOT NULL AND coalesce(r.received_ms, o.received_ms) < $1 LIMIT $2
) old
WHERE e.room_id = old.room_id AND e.event_id = old.event_id
RETURNING 1
"""


class PartitionMoved(Exception):
    """The room lies in another shard now, or will in a moment."""


class PurgedSlice(NamedTuple):
    """How far a slice came, and how many events it deleted."""

    reached: OrderKey
    deleted: int


async def find_bound(tx: Transaction, room_id: RoomId, *, before_ts: int) -> int | None:
    """The anchor of the last event that was sent before a time (ms); None if there is none."""
    anchor: int | None = await tx.fetchval(_LAST_BY_TIME, room_id, before_ts)
    return anchor


async def find_bound_before(tx: Transaction, room_id: RoomId, event_id: EventId) -> int | None:
    """The anchor below that of an event; None if the event has no place in the room."""
    row = await tx.fetchrow(_ANCHOR_OF, room_id, event_id)
    return None if row is None else int(row[0]) - 1


async def mark_purged(tx: Transaction, room_id: RoomId, up_to: int) -> int:
    """From now on the room says that something is missing up to an anchor; its partition. Repeatable.

    Raises:
        PartitionMoved
    """
    partition: int | None = await tx.fetchval(_MARK, room_id, up_to)
    if partition is None:
        raise PartitionMoved(room_id)
    return partition


async def delete_slice(
    tx: Transaction, room_id: RoomId, up_to: int, after: OrderKey | None, *, spared_server: ServerName | None
) -> PurgedSlice | None:
    """Delete what is to go of the next SLICE events; None at the end. Repeatable; in a transaction of its own.

    Args:
        after: where the last slice came to.
        spared_server: whose users' events stay; None deletes everybody's.

    Raises:
        PartitionMoved
    """
    await tx.execute(_LOCK)
    partition = await mark_purged(tx, room_id, up_to)
    newest = await tx.fetchrow(_NEWEST, room_id, up_to)
    if newest is None:
        return None
    suffix = "" if spared_server is None else f":{spared_server}"
    begin = after or LOWEST
    row = await tx.fetchrow(_DELETE_SLICE, room_id, begin.anchor, begin.sub, up_to, partition, newest[0], suffix)
    return None if row is None else PurgedSlice(OrderKey(row[0], row[1]), row[2])


async def delete_what_hung_on_them(tx: Transaction, room_id: RoomId, up_to: int) -> None:
    """Mentions in what was deleted, and threads that ended there. Repeatable; in a transaction of its own.

    Raises:
        PartitionMoved
    """
    await tx.execute(_LOCK)
    await mark_purged(tx, room_id, up_to)
    await tx.execute(_DELETE_MENTIONS, room_id, up_to)
    await tx.execute(_DELETE_THREADS, room_id, up_to)


async def drop_originals(tx: Transaction, before_ms: int, limit: int) -> int:
    """Delete what redactions took away before a time (our receive time, ms); how many rows, at most `limit`."""
    return len(await tx.fetch(_DROP_ORIGINALS, before_ms, limit))
