"""What /sync reads of the account store in one go: the heads, settings and keys of one user and device."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.account_data import AccountData
from tessera.storage.database import Transaction
from tessera.storage.presence import Presence
from tessera.storage.read_positions import ReadPosition
from tessera.storage.to_device import StoredMessage
from tessera.storage.user_log import UserLogRow
from tessera.storage.user_rooms import UserRoom

MAX_PRESENCES = 1_000  # of this server's users in one answer, and of others' that are looked at for it
TOLD_MINUTES = 40  # other servers tell of those who are about every 25 minutes


class UserOverview(NamedTuple):
    """The heads of the user's log, of the device changes and of the erasures; settings that decide what is shown."""

    log_head: int
    devices_head: int
    ignored_list: bytes | None  # content of m.ignored_user_list
    push_rules: bytes | None  # stored form; None for the defaults
    erasures_head: int
    invite_permission: bytes | None = None  # content of m.invite_permission_config


class DeviceKeyCounts(NamedTuple):
    """What a device has left of its keys. Spec: C-S API §End-to-end encryption, "Extensions to /sync"."""

    one_time: dict[str, int]
    unused_fallback: list[str]


_OVERVIEW = """
SELECT coalesce((SELECT head FROM accounts.user_log_heads WHERE user_id = $1), 0),
       (SELECT head FROM accounts.device_changes_head),
       (SELECT content FROM accounts.account_data
        WHERE user_id = $1 AND room_id = '' AND type = 'm.ignored_user_list'),
       (SELECT rules FROM accounts.push_rules WHERE user_id = $1),
       coalesce((SELECT max(position) FROM accounts.erasures), 0),
       (SELECT content FROM accounts.account_data
        WHERE user_id = $1 AND room_id = '' AND type = 'm.invite_permission_config')
"""

# The user's rooms, each with the user's receipts in it.
_ROOMS = """
SELECT r.room_id, r.membership, r.event_id, r.sender, r.partition, r.incarnation, r.position, r.log_position,
       r.forgotten, r.stripped_state, read.types, read.threads, read.events, read.anchors, read.subs, read.times
FROM accounts.user_rooms r
LEFT JOIN LATERAL (
    SELECT array_agg(p.receipt_type) AS types, array_agg(p.thread_id) AS threads, array_agg(p.event_id) AS events,
           array_agg(p.anchor) AS anchors, array_agg(p.sub) AS subs, array_agg(p.ts) AS times
    FROM accounts.read_positions p WHERE p.user_id = r.user_id AND p.room_id = r.room_id
) read ON r.membership = 'join'
WHERE r.user_id = $1
"""

# To-device messages (kind 1), one-time keys (2) and unused fallback keys (3) of a device.
_DEVICE = """
SELECT * FROM (
    SELECT 1, position, sender, type, content FROM accounts.to_device
    WHERE user_id = $1 AND device_id = $2 AND position > $3 ORDER BY position LIMIT $4
) messages
UNION ALL
SELECT 2, count(*), NULL, algorithm, NULL FROM accounts.one_time_keys
WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm
UNION ALL
SELECT 3, 0, NULL, algorithm, NULL FROM accounts.fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used
"""

# Rooms of other servers' users are not in this store; a server that has died does not say that they are away.
_PRESENCE_AROUND = f"""
(
    SELECT p.user_id, p.presence, p.status_msg, p.last_active_ts, false FROM accounts.presence p
    WHERE p.user_id IN (
        SELECT other.user_id FROM accounts.user_rooms own
        JOIN accounts.user_rooms other ON other.room_id = own.room_id AND other.membership = 'join'
        WHERE own.user_id = $1 AND own.membership = 'join'
    )
    LIMIT {MAX_PRESENCES}
) UNION ALL (
    SELECT p.user_id, p.presence, p.status_msg, p.last_active_ts, true FROM accounts.presence p
    WHERE p.told_at IS NOT NULL AND p.presence <> 'offline' AND p.told_at > now() - interval '{TOLD_MINUTES} minutes'
    ORDER BY p.told_at DESC LIMIT {MAX_PRESENCES}
)
"""  # noqa: S608  constant text

_NEIGHBOURS = """
SELECT DISTINCT own.user_id, other.user_id
FROM accounts.user_rooms own
JOIN accounts.user_rooms other ON other.room_id = own.room_id AND other.membership = 'join'
WHERE own.user_id = ANY($1::text[]) AND own.membership = 'join' AND other.user_id = ANY($2::text[])
"""

_DATA = """
SELECT room_id, type, content, position FROM accounts.account_data
WHERE user_id = $1 AND (
    (room_id, type) IN (SELECT * FROM unnest($2::text[], $3::text[]))
    OR room_id = ANY($4::text[]) AND content IS NOT NULL
)
"""

_CHANGED_DEVICES = """
SELECT DISTINCT user_id, observer FROM accounts.device_changes
WHERE position > $1 AND position <= $2 AND observer IN ('', $3) LIMIT 10000
"""

_LOGS = """
SELECT w.user_id, l.position, l.kind, l.room_id, l.key, l.body
FROM unnest($1::text[], $2::bigint[]) AS w (user_id, after)
CROSS JOIN LATERAL (
    SELECT * FROM accounts.user_log u WHERE u.user_id = w.user_id AND u.position > w.after
    ORDER BY u.position LIMIT $3
) l
ORDER BY w.user_id, l.position
"""


async def find_overview(tx: Transaction, user_id: UserId) -> UserOverview:
    """The user's heads and settings."""
    return UserOverview(*await tx.fetchrow(_OVERVIEW, user_id))


async def list_logs(tx: Transaction, after: Mapping[UserId, int], limit: int) -> dict[UserId, list[UserLogRow]]:
    """The logs of several users above a position each, oldest first, at most `limit` entries of a user."""
    found: dict[UserId, list[UserLogRow]] = {user_id: [] for user_id in after}
    for row in await tx.fetch(_LOGS, list(after), list(after.values()), limit):
        found[row[0]].append(UserLogRow(*row[1:]))
    return found


async def list_rooms_with_receipts(tx: Transaction, user_id: UserId) -> tuple[list[UserRoom], list[ReadPosition]]:
    """All rooms of the user, and the user's receipts in those that the user is joined to."""
    rooms: list[UserRoom] = []
    positions: list[ReadPosition] = []
    for row in await tx.fetch(_ROOMS, user_id):
        rooms.append(UserRoom(*row[:10]))
        if row[10]:
            receipts = zip(*(row[at] for at in range(10, 16)), strict=True)
            positions += [ReadPosition(user_id, row[0], *receipt) for receipt in receipts]
    return rooms, positions


async def find_device_news(
    tx: Transaction, user_id: UserId, device_id: str, after: int, limit: int
) -> tuple[list[StoredMessage], DeviceKeyCounts]:
    """The device's oldest messages above a position, at most `limit`, and what is left of its keys."""
    messages: list[StoredMessage] = []
    counts = DeviceKeyCounts({}, [])
    for kind, position, sender, name, content in await tx.fetch(_DEVICE, user_id, device_id, after, limit):
        if kind == 1:
            messages.append(StoredMessage(position, sender, name, content))
        elif kind == 2:
            counts.one_time[name] = position
        else:
            counts.unused_fallback.append(name)
    return sorted(messages, key=lambda message: message.position), counts


async def list_presence_around(tx: Transaction, user_id: UserId) -> tuple[list[Presence], list[Presence]]:
    """The presence of those of this server who share a room with the user, the user too; and of other servers' users.

    The latter are all who may be about now: who of them shares a room with the user, this store does not know.
    """
    rows = await tx.fetch(_PRESENCE_AROUND, user_id)
    own, others = ([Presence(*row[:4]) for row in rows if row[4] is told] for told in (False, True))
    return own, others


async def list_neighbours(
    tx: Transaction, changed: Collection[UserId], listeners: Sequence[UserId]
) -> list[tuple[UserId, UserId]]:
    """(changed, listener) for each pair that is joined to a room together."""
    return [(row[0], row[1]) for row in await tx.fetch(_NEIGHBOURS, list(changed), list(listeners))]


async def list_account_data(
    tx: Transaction, user_id: UserId, keys: Collection[tuple[str, str]], room_ids: Collection[RoomId]
) -> list[AccountData]:
    """The rows of these (room_id, type), deleted ones too, and all that is kept for these rooms."""
    rows = await tx.fetch(_DATA, user_id, [key[0] for key in keys], [key[1] for key in keys], list(room_ids))
    return [AccountData(*row) for row in rows]


async def list_device_changes(
    tx: Transaction, after: int, up_to: int, observer: UserId
) -> tuple[set[UserId], set[UserId]]:
    """(users whose devices changed for all to see, users whose keys changed for the observer alone)."""
    if after >= up_to:
        return set(), set()
    rows = await tx.fetch(_CHANGED_DEVICES, after, up_to, observer)
    return {row[0] for row in rows if not row[1]}, {row[0] for row in rows if row[1]}
