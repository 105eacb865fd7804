"""Which threads a user follows, and which the user has left on purpose.

Each change has the position of its entry in the user's log, so that a client can ask what has changed since then.

Spec: MSC4306 (thread subscriptions), MSC4308 (listing them).
"""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind, append


class ThreadSubscription(NamedTuple):
    """One thread that the user follows, or follows no more.

    Attributes:
        automatic: a client followed it by itself, since the user was mentioned or spoke there.
        left_anchor: while not subscribed, the room's newest position when the user left the thread.
    """

    room_id: RoomId
    thread_root: EventId
    subscribed: bool
    automatic: bool
    left_anchor: int
    position: int


_COLUMNS = "room_id, thread_root, subscribed, automatic, left_anchor, position"

_FIND = f"""
SELECT {_COLUMNS} FROM accounts.thread_subscriptions WHERE user_id = $1 AND room_id = $2 AND thread_root = $3
"""  # noqa: S608  constant text

_FIND_LOCKED = f"{_FIND} FOR UPDATE"

_COUNT = """
SELECT count(*) FROM (SELECT FROM accounts.thread_subscriptions WHERE user_id = $1 LIMIT $2) some_of_them
"""

_SET = """
INSERT INTO accounts.thread_subscriptions (user_id, room_id, thread_root, subscribed, automatic, left_anchor, position)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (user_id, room_id, thread_root) DO UPDATE SET subscribed = EXCLUDED.subscribed,
    automatic = EXCLUDED.automatic, left_anchor = EXCLUDED.left_anchor, position = EXCLUDED.position
"""

_LIST_NEWEST = f"""
SELECT {_COLUMNS} FROM accounts.thread_subscriptions WHERE user_id = $1 AND position > $2 AND position <= $3
ORDER BY position DESC LIMIT $4
"""  # noqa: S608  constant text


async def find_subscription(
    tx: Transaction, user_id: UserId, room_id: RoomId, thread_root: EventId, *, locked: bool = False
) -> ThreadSubscription | None:
    """What the user has said of a thread; `locked` for who is going to change it."""
    row = await tx.fetchrow(_FIND_LOCKED if locked else _FIND, user_id, room_id, thread_root)
    return None if row is None else ThreadSubscription(*row)


async def has_room_for_more(tx: Transaction, user_id: UserId, most: int) -> bool:
    """Whether the user has said something of fewer than `most` threads."""
    count: int = await tx.fetchval(_COUNT, user_id, most)
    return count < most


async def set_subscription(
    tx: Transaction,
    user_id: UserId,
    room_id: RoomId,
    thread_root: EventId,
    *,
    subscribed: bool,
    automatic: bool = False,
    left_anchor: int = 0,
) -> dict[UserId, int]:
    """Note what the user says, and tell the user's log of it; answers the log's new head.

    The log's head row is locked first and until the transaction ends, so that positions become visible in order.
    """
    entry = LogEntry(user_id, UserLogKind.THREAD_SUBSCRIPTION, room_id, thread_root)
    heads = await append(tx, [entry])
    await tx.execute(_SET, user_id, room_id, thread_root, subscribed, automatic, left_anchor, heads[user_id])
    return heads


async def list_newest(
    tx: Transaction, user_id: UserId, *, after: int, up_to: int, limit: int
) -> Sequence[ThreadSubscription]:
    """The changes with after < position <= up_to, each thread once with its last one, the newest first."""
    return [ThreadSubscription(*row) for row in await tx.fetch(_LIST_NEWEST, user_id, after, up_to, limit)]
