"""How far local users have read: their receipts, private ones too, and fully_read markers.

Spec: C-S API §Receipts, §Fully read markers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage import account_data, push_queue
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind, append

FULLY_READ = "m.fully_read"
COUNTED = frozenset(("m.read", "m.read.private"))  # those that change unread counts


class ReadPosition(NamedTuple):
    """A receipt: the event and its order key in the room; thread_id '' for an unthreaded receipt."""

    user_id: UserId
    room_id: RoomId
    receipt_type: str
    thread_id: str
    event_id: EventId
    anchor: int
    sub: int
    ts: int


_COLUMNS = "user_id, room_id, receipt_type, thread_id, event_id, anchor, sub, ts"

# Receipts only move forward. Spec: §Receipts, "Server behaviour".
_SET = f"""
INSERT INTO accounts.read_positions AS r ({_COLUMNS})
SELECT DISTINCT ON (user_id, room_id, receipt_type, thread_id) {_COLUMNS}
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::int[], $8::bigint[])
    AS i ({_COLUMNS})
ORDER BY user_id, room_id, receipt_type, thread_id, anchor DESC, sub DESC
ON CONFLICT (user_id, room_id, receipt_type, thread_id) DO UPDATE SET
    event_id = EXCLUDED.event_id, anchor = EXCLUDED.anchor, sub = EXCLUDED.sub, ts = EXCLUDED.ts
WHERE (EXCLUDED.anchor, EXCLUDED.sub) > (r.anchor, r.sub)
RETURNING {_COLUMNS}
"""  # noqa: S608  constant text

_LIST_OF_ROOMS = f"""
SELECT {_COLUMNS} FROM accounts.read_positions WHERE user_id = $1 AND room_id = ANY($2::text[])
"""  # noqa: S608  constant text

_LIST_OF_ROOM = f"SELECT {_COLUMNS} FROM accounts.read_positions WHERE user_id = $1 AND room_id = $2"  # noqa: S608  constant text


async def set_positions(tx: Transaction, positions: Sequence[ReadPosition]) -> dict[UserId, int]:
    """Move receipts forward and tell their users' logs; those that would go back or stay are ignored.

    m.fully_read becomes the room's account data of that type too. Push gateways of who has read are to be told the new
    counts.

    Returns:
        The new heads of the users for whom something moved.
    """
    if not positions:
        return {}
    columns = [list(column) for column in zip(*positions, strict=True)]
    moved = [ReadPosition(*row) for row in await tx.fetch(_SET, *columns)]
    heads = await append(tx, [_log_entry(position) for position in moved])
    if readers := {position.user_id for position in moved if position.receipt_type in COUNTED}:
        await push_queue.mark_badges_due(tx, sorted(readers))
    for position in moved:
        if position.receipt_type == FULLY_READ:
            content = orjson.dumps({"event_id": position.event_id})
            heads |= await account_data.set_content(tx, position.user_id, position.room_id, FULLY_READ, content)
    return heads


def _log_entry(position: ReadPosition) -> LogEntry:
    body: dict[str, object] = {"event_id": position.event_id, "ts": position.ts}
    if position.thread_id:
        body["thread_id"] = position.thread_id
    return LogEntry(position.user_id, UserLogKind.RECEIPT, position.room_id, position.receipt_type, orjson.dumps(body))


async def list_of_rooms(tx: Transaction, user_id: UserId, room_ids: Sequence[RoomId]) -> list[ReadPosition]:
    """The user's receipts in these rooms, in any order."""
    return [ReadPosition(*row) for row in await tx.fetch(_LIST_OF_ROOMS, user_id, list(room_ids))]


async def list_of_room(tx: Transaction, user_id: UserId, room_id: RoomId) -> list[ReadPosition]:
    """The user's receipts in one room."""
    return [ReadPosition(*row) for row in await tx.fetch(_LIST_OF_ROOM, user_id, room_id)]
