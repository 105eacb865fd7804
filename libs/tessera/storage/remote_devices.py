"""Devices and cross-signing keys of other servers' users, kept while they share a room with somebody here.

A list is either complete up to its server's stream_id, or stale: then it is asked for again, and until that is
answered nothing is served from it but in want of better.

Spec: S-S API §Device Management.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matrixcore.identifiers import RoomId, ServerName, UserId
from tessera.storage.database import Transaction

MAX_DEVICES = 1_000  # of one user
RETRY_SECONDS = 30
MAX_ATTEMPTS = 10  # after that the list is asked for when somebody needs it


class RemoteList(NamedTuple):
    """What is known of a user's devices."""

    user_id: UserId
    stream_id: int
    stale: bool
    changed: int
    master_key: bytes | None
    self_signing_key: bytes | None


class StaleList(NamedTuple):
    """A list that is to be asked for.

    Attributes:
        changed: to be given back with the answer.
        attempts: the present one included.
    """

    user_id: UserId
    changed: int
    attempts: int


class RemoteUpdate(NamedTuple):
    """One m.device_list_update; content None: the device is gone."""

    user_id: UserId
    device_id: str
    stream_id: int
    prev_ids: tuple[int, ...]
    content: bytes | None


_LISTS = """
SELECT user_id, stream_id, stale, changed, master_key, self_signing_key FROM accounts.remote_device_lists
WHERE user_id = ANY($1::text[])
"""
_DEVICES = "SELECT user_id, device_id, content FROM accounts.remote_devices WHERE user_id = ANY($1::text[])"
_ASK = """
INSERT INTO accounts.remote_device_lists (user_id) SELECT * FROM unnest($1::text[]) ORDER BY 1
ON CONFLICT (user_id) DO UPDATE SET attempts = 0, ask_at = now() WHERE remote_device_lists.stale
"""
_LOCK = """
SELECT user_id, stream_id, stale, changed, master_key, self_signing_key FROM accounts.remote_device_lists
WHERE user_id = $1 FOR UPDATE
"""
_ADVANCE = """
UPDATE accounts.remote_device_lists SET stream_id = $2, changed = changed + 1 WHERE user_id = $1
"""
_MARK_STALE = """
UPDATE accounts.remote_device_lists SET stale = true, changed = changed + 1, ask_at = now(), attempts = 0
WHERE user_id = ANY($1::text[])
"""
_SET_DEVICE = """
INSERT INTO accounts.remote_devices (user_id, device_id, content) VALUES ($1, $2, $3)
ON CONFLICT (user_id, device_id) DO UPDATE SET content = EXCLUDED.content
"""
_DELETE_DEVICE = "DELETE FROM accounts.remote_devices WHERE user_id = $1 AND device_id = $2"
_SET_SIGNING = """
UPDATE accounts.remote_device_lists
SET master_key = coalesce($2, master_key), self_signing_key = coalesce($3, self_signing_key), changed = changed + 1
WHERE user_id = $1
"""
# Whoever asks has a while for it; if it dies, somebody else asks.
_TAKE_STALE = f"""
UPDATE accounts.remote_device_lists l
SET ask_at = now() + make_interval(secs => {RETRY_SECONDS} * (l.attempts + 1) * (l.attempts + 1)),
    attempts = l.attempts + 1
FROM (
    SELECT user_id FROM accounts.remote_device_lists
    WHERE stale AND ask_at <= now() AND attempts < {MAX_ATTEMPTS} ORDER BY ask_at LIMIT $1 FOR UPDATE SKIP LOCKED
) due
WHERE l.user_id = due.user_id RETURNING l.user_id, l.changed, l.attempts
"""  # noqa: S608 -- constant text
_REPLACE = """
UPDATE accounts.remote_device_lists
SET stream_id = $2, stale = false, attempts = 0, master_key = $3, self_signing_key = $4
WHERE user_id = $1
"""
_CLEAR_DEVICES = "DELETE FROM accounts.remote_devices WHERE user_id = $1"
_ADD_DEVICES = """
INSERT INTO accounts.remote_devices (user_id, device_id, content)
SELECT $1, * FROM unnest($2::text[], $3::bytea[]) ORDER BY 2
"""
_FORGET = "DELETE FROM accounts.remote_device_lists WHERE user_id = ANY($1::text[])"
_KNOWN = "SELECT user_id FROM accounts.remote_device_lists WHERE user_id = ANY($1::text[])"

_SHARING = """
SELECT DISTINCT m.state_key FROM rooms.current_state m
JOIN rooms.room_servers s ON s.room_id = m.room_id AND s.server_name = $2 AND s.joined_count > 0
WHERE m.type = 'm.room.member' AND m.state_key = ANY($1::text[]) AND m.membership = 'join'
"""
# Rooms that a user has left do not count, though the user may have come back: between the two, nothing was told.
_SHARING_ELSEWHERE = (
    _SHARING
    + """
  AND NOT EXISTS (
      SELECT FROM unnest($3::text[], $4::text[]) AS gone (user_id, room_id)
      WHERE gone.user_id = m.state_key AND gone.room_id = m.room_id
  )
"""
)
_MEMBERS_OF_OTHERS = """
SELECT room_id, state_key FROM rooms.current_state
WHERE room_id = ANY($1::text[]) AND type = 'm.room.member' AND membership = 'join'
  AND right(state_key, length($2) + 1) <> ':' || $2
"""


async def list_lists(tx: Transaction, user_ids: Sequence[UserId]) -> dict[UserId, RemoteList]:
    """What is known of these users' lists."""
    return {row[0]: RemoteList(*row) for row in await tx.fetch(_LISTS, list(user_ids))}


async def list_devices(tx: Transaction, user_ids: Sequence[UserId]) -> dict[UserId, dict[str, bytes]]:
    """User -> device -> keys, of those that are kept."""
    found: dict[UserId, dict[str, bytes]] = {}
    for user_id, device_id, content in await tx.fetch(_DEVICES, list(user_ids)):
        found.setdefault(user_id, {})[device_id] = content
    return found


async def ask_for(tx: Transaction, user_ids: Sequence[UserId]) -> None:
    """Keep lists for these users from now on; they are stale until their servers have been asked."""
    if user_ids:
        await tx.execute(_ASK, sorted(user_ids))


async def apply_update(tx: Transaction, update: RemoteUpdate) -> None:
    """Take an update in where it follows what is known; after a gap the list is stale. Repeatable."""
    row = await tx.fetchrow(_LOCK, update.user_id)
    if row is None:
        return
    known = RemoteList(*row)
    if known.stale:
        await tx.execute(_MARK_STALE, [update.user_id])  # an answer on its way may lack it
        return
    if update.stream_id <= known.stream_id:
        return
    if update.prev_ids and max(update.prev_ids) > known.stream_id:
        await tx.execute(_MARK_STALE, [update.user_id])
        return
    if update.content is None:
        await tx.execute(_DELETE_DEVICE, update.user_id, update.device_id)
    else:
        await tx.execute(_SET_DEVICE, update.user_id, update.device_id, update.content)
    await tx.execute(_ADVANCE, update.user_id, update.stream_id)


async def set_signing_keys(
    tx: Transaction, user_id: UserId, master_key: bytes | None, self_signing_key: bytes | None
) -> None:
    """New cross-signing keys of a user whose list is kept; None leaves what is there."""
    await tx.execute(_SET_SIGNING, user_id, master_key, self_signing_key)


async def mark_stale(tx: Transaction, user_ids: Sequence[UserId]) -> None:
    """Updates of these users may have been missed; their lists are to be asked for. Repeatable."""
    await tx.execute(_MARK_STALE, sorted(user_ids))


async def take_stale(tx: Transaction, limit: int) -> list[StaleList]:
    """Lists that are to be asked for now."""
    return [StaleList(*row) for row in await tx.fetch(_TAKE_STALE, limit)]


async def replace_list(
    tx: Transaction,
    user_id: UserId,
    changed: int,
    stream_id: int,
    devices: Mapping[str, bytes],
    signing_keys: tuple[bytes | None, bytes | None],
) -> bool | None:
    """A user's server has answered.

    Args:
        changed: as it was when the server was asked.
        signing_keys: the master and the self-signing key.

    Returns:
        Whether the list is another one now; None if an update came after the server was asked, and the answer counts
        for nothing.
    """
    row = await tx.fetchrow(_LOCK, user_id)
    if row is None or (known := RemoteList(*row)).changed != changed:
        return None
    before = (await list_devices(tx, [user_id])).get(user_id, {})
    await tx.execute(_REPLACE, user_id, stream_id, *signing_keys)
    if before != devices:
        await tx.execute(_CLEAR_DEVICES, user_id)
        await tx.execute(_ADD_DEVICES, user_id, list(devices), list(devices.values()))
    return before != devices or signing_keys != (known.master_key, known.self_signing_key)


async def forget(tx: Transaction, user_ids: Sequence[UserId]) -> None:
    """These users share no room with us any longer: their servers will not tell of their devices."""
    await tx.execute(_FORGET, list(user_ids))


async def list_kept(tx: Transaction, user_ids: Sequence[UserId]) -> list[UserId]:
    """Those of the users whose lists are kept."""
    return [UserId(row[0]) for row in await tx.fetch(_KNOWN, list(user_ids))]


async def list_sharing(tx: Transaction, user_ids: Sequence[UserId], own: ServerName) -> set[UserId]:
    """Of users those who are in a room of this shard together with somebody of this server."""
    return {UserId(row[0]) for row in await tx.fetch(_SHARING, list(user_ids), own)}


async def list_sharing_elsewhere(
    tx: Transaction, left: Sequence[tuple[UserId, RoomId]], own: ServerName
) -> set[UserId]:
    """Of users who left rooms those who are in another room of this shard together with somebody of this server."""
    users, rooms = [user_id for user_id, _ in left], [room_id for _, room_id in left]
    asked = sorted(set(users))
    return {UserId(row[0]) for row in await tx.fetch(_SHARING_ELSEWHERE, asked, own, users, rooms)}


async def list_members_of_others(
    tx: Transaction, room_ids: Sequence[RoomId], own: ServerName
) -> list[tuple[UserId, RoomId]]:
    """(user, room) of those joined to the rooms who are not of this server."""
    rows = await tx.fetch(_MEMBERS_OF_OTHERS, list(room_ids), own)
    return [(UserId(row[1]), RoomId(row[0])) for row in rows]
