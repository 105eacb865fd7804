"""The stream of device-list changes: dense positions over all users, written with the change itself.

After the COMMIT the caller publishes a DeviceWake with the position that `add_changes` gave.

Spec: C-S API §Tracking the device list for a user.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

# The head row is the one place where all key changes meet: take it last in a transaction.
ADD = """
WITH moved AS (
    UPDATE accounts.device_changes_head SET head = head + cardinality($1::text[]) RETURNING head
), added AS (
    INSERT INTO accounts.device_changes (position, user_id, device_id, observer)
    SELECT moved.head - cardinality($1::text[]) + change.number, change.user_id, change.device_id, change.observer
    FROM moved, unnest($1::text[], $2::text[], $3::text[])
        WITH ORDINALITY AS change (user_id, device_id, observer, number)
)
SELECT head FROM moved
"""

HEAD = "SELECT head FROM accounts.device_changes_head"

# Whichever is fewer drives it: the changes of the span, or the users asked for.
CHANGED_USERS = """
SELECT DISTINCT user_id FROM accounts.device_changes
WHERE position > $1 AND position <= $2
  AND (observer = $4 OR (observer = '' AND user_id = ANY($3::text[])))
"""

CHANGES = """
SELECT position, user_id, device_id, observer FROM accounts.device_changes
WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3
"""

# What everybody may know of a user's devices; cross-signing keys have no place in that order.
PREVIOUS = """
SELECT q.user_id, q.position, before.position
FROM unnest($1::text[], $2::bigint[]) AS q (user_id, position)
CROSS JOIN LATERAL (
    SELECT position FROM accounts.device_changes
    WHERE user_id = q.user_id AND position < q.position AND observer = '' AND device_id <> ''
    ORDER BY position DESC LIMIT 1
) before
"""

LAST = """
SELECT coalesce(max(position), 0) FROM accounts.device_changes
WHERE user_id = $1 AND observer = '' AND device_id <> ''
"""


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """Something about a user's keys is new: a device's ('' stands for the cross-signing keys).

    `observer` names the only user who is to hear of it (a signature by their user-signing key); '' means everybody.
    """

    user_id: UserId
    device_id: str = ""
    observer: str = ""


@dataclass(frozen=True, slots=True)
class DeviceChangeRow:
    """A change at its position."""

    position: int
    change: DeviceChange


async def add_changes(tx: Transaction, changes: Sequence[DeviceChange]) -> int:
    """Append at least one change, in order; answers the new head.

    The head row stays locked until the transaction ends, so this comes last in it.
    """
    assert changes
    head: int = await tx.fetchval(
        ADD,
        [change.user_id for change in changes],
        [change.device_id for change in changes],
        [change.observer for change in changes],
    )
    return head


async def find_head(tx: Transaction) -> int:
    """The position of the last change, 0 if there is none."""
    head: int = await tx.fetchval(HEAD)
    return head


async def list_changed_users(
    tx: Transaction, after: int, up_to: int, users: Sequence[UserId], observer: UserId
) -> list[UserId]:
    """Which of `users` changed at after < position <= up_to, as `observer` may know; order undefined.

    Users whose keys the observer's own user-signing key signed are listed whether or not they are in `users`.
    """
    if after >= up_to:
        return []
    rows = await tx.fetch(CHANGED_USERS, after, up_to, users, observer)
    return [row[0] for row in rows]


async def list_changes(tx: Transaction, after: int, up_to: int, limit: int = 1000) -> list[DeviceChangeRow]:
    """The changes at after < position <= up_to in order, at most `limit` of them."""
    rows = await tx.fetch(CHANGES, after, up_to, limit)
    return [DeviceChangeRow(row[0], DeviceChange(row[1], row[2], row[3])) for row in rows]


async def list_previous(tx: Transaction, changes: Sequence[tuple[UserId, int]]) -> dict[tuple[UserId, int], int]:
    """Of changes (user, position) those of the same user's devices before them, where there are any."""
    rows = await tx.fetch(PREVIOUS, [one[0] for one in changes], [one[1] for one in changes])
    return {(row[0], row[1]): row[2] for row in rows}


async def find_last(tx: Transaction, user_id: UserId) -> int:
    """The last change of the user's devices that everybody may know of; 0 if there is none."""
    position: int = await tx.fetchval(LAST, user_id)
    return position
