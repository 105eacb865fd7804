"""The user log: what the clients of one local user must hear about, in one dense order.

Primary data, never rebuilt and never renumbered. Positions are allotted under the user's narrow
head row; heads are moved in the order of user IDs, so that writers that touch several users
cannot deadlock. After COMMIT the caller publishes `UserWake(user_id, head)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction
from tessera.wakes import UserWake


class UserLogKind(IntEnum):
    """What an entry of the user log says; which of room_id, key and body it uses."""

    MEMBERSHIP = 1  # room_id; body: see user_rooms.apply_changes
    ACCOUNT_DATA = 2  # key: type; the content is in accounts.account_data
    ROOM_ACCOUNT_DATA = 3  # room_id, key: type
    PUSH_RULES = 4
    RECEIPT = 5  # the user's own: room_id, key: receipt type, body: {event_id, thread_id?, ts}
    TO_DEVICE = 6  # key: device_id; the message has the same position in accounts.to_device
    ONE_TIME_KEYS = 7  # key: device_id
    UNREAD = 8  # room_id
    FORGET = 9  # room_id
    SESSION_ENDED = 10  # key: device_id
    IGNORED_USERS = 11
    THREAD_SUBSCRIPTION = 12  # room_id, key: the thread's root; see accounts.thread_subscriptions


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry to append."""

    user_id: UserId
    kind: UserLogKind
    room_id: str = ""
    key: str = ""
    body: bytes | None = None


class UserLogRow(NamedTuple):
    """One entry as stored."""

    position: int
    kind: int  # a UserLogKind, or a kind that a newer release wrote
    room_id: str
    key: str
    body: bytes | None


# The new heads come from `moved`, which is also what every position is counted from: one
# statement, and no position is given twice or left out.
_APPEND = """
WITH input AS (
    SELECT * FROM unnest($1::text[], $2::smallint[], $3::text[], $4::text[], $5::bytea[])
        WITH ORDINALITY AS i (user_id, kind, room_id, key, body, ord)
), counted AS (
    SELECT user_id, count(*) AS entries FROM input GROUP BY user_id
), moved AS (
    INSERT INTO accounts.user_log_heads AS h (user_id, head)
    SELECT user_id, entries FROM counted ORDER BY user_id
    ON CONFLICT (user_id) DO UPDATE SET head = h.head + EXCLUDED.head
    RETURNING user_id, head
), placed AS (
    SELECT i.*, m.head - c.entries + row_number() OVER (PARTITION BY i.user_id ORDER BY i.ord) AS position
    FROM input i JOIN counted c USING (user_id) JOIN moved m USING (user_id)
), written AS (
    INSERT INTO accounts.user_log (user_id, position, kind, room_id, key, body)
    SELECT user_id, position, kind, room_id, key, body FROM placed
)
SELECT position FROM placed ORDER BY ord
"""

_LIST_AFTER = """
SELECT position, kind, room_id, key, body FROM accounts.user_log
WHERE user_id = $1 AND position > $2 AND position <= $3
ORDER BY position LIMIT $4
"""

_FIND_HEAD = "SELECT head FROM accounts.user_log_heads WHERE user_id = $1"

_LIST_HEADS = "SELECT user_id, head FROM accounts.user_log_heads WHERE user_id = ANY($1::text[])"

_MAX_POSITION = (1 << 63) - 1


async def append_returning_positions(tx: Transaction, entries: Sequence[LogEntry]) -> list[int]:
    """Append entries of any users and answer the position of each, in the order of the input."""
    if not entries:
        return []
    rows = await tx.fetch(
        _APPEND,
        [entry.user_id for entry in entries],
        [int(entry.kind) for entry in entries],
        [entry.room_id for entry in entries],
        [entry.key for entry in entries],
        [entry.body for entry in entries],
    )
    return [row[0] for row in rows]


async def append(tx: Transaction, entries: Sequence[LogEntry]) -> dict[UserId, int]:
    """Append entries of any users and answer the new head of each user's log."""
    positions = await append_returning_positions(tx, entries)
    # Positions of one user rise with the input, so the last one seen is the head.
    return {entry.user_id: position for entry, position in zip(entries, positions, strict=True)}


async def list_after(
    tx: Transaction, user_id: UserId, after: int, up_to: int | None = None, limit: int = 1000
) -> list[UserLogRow]:
    """The entries with after < position <= up_to, oldest first, at most `limit`."""
    rows = await tx.fetch(_LIST_AFTER, user_id, after, _MAX_POSITION if up_to is None else up_to, limit)
    return [UserLogRow(*row) for row in rows]


async def find_head(tx: Transaction, user_id: UserId) -> int:
    """The position of the user's newest entry, 0 for an empty log."""
    head: int | None = await tx.fetchval(_FIND_HEAD, user_id)
    return head or 0


async def list_heads(tx: Transaction, user_ids: Sequence[UserId]) -> dict[UserId, int]:
    """The heads of several users; those with an empty log are 0."""
    heads = dict.fromkeys(user_ids, 0)
    heads.update({UserId(row[0]): row[1] for row in await tx.fetch(_LIST_HEADS, list(user_ids))})
    return heads


def wakes_of(heads: Mapping[UserId, int]) -> list[UserWake]:
    """The wakes to publish after the COMMIT of what moved these heads."""
    return [UserWake(user_id, head) for user_id, head in heads.items()]
