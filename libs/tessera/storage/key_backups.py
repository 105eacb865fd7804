"""Server-side key backups: versions, and the encrypted room keys in them.

Spec: C-S API §Server-side key backups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

LOCK_USER = "SELECT pg_advisory_xact_lock(hashtextextended($1, 7003))"

ADD_VERSION = """
INSERT INTO accounts.key_backup_versions (user_id, version, algorithm, auth_data)
SELECT $1, coalesce(max(version), 0) + 1, $2, $3 FROM accounts.key_backup_versions WHERE user_id = $1
RETURNING version
"""

CURRENT_VERSION = """
SELECT version, algorithm, auth_data, etag, session_count, deleted FROM accounts.key_backup_versions
WHERE user_id = $1 AND NOT deleted ORDER BY version DESC LIMIT 1
"""

VERSION = """
SELECT version, algorithm, auth_data, etag, session_count, deleted FROM accounts.key_backup_versions
WHERE user_id = $1 AND version = $2
"""

SET_AUTH_DATA = "UPDATE accounts.key_backup_versions SET auth_data = $3 WHERE user_id = $1 AND version = $2"

DELETE_VERSION = """
UPDATE accounts.key_backup_versions SET deleted = true, auth_data = '', session_count = 0
WHERE user_id = $1 AND version = $2
"""

DELETE_VERSION_SESSIONS = "DELETE FROM accounts.key_backup_sessions WHERE user_id = $1 AND version = $2"

# A verified key beats an unverified one, then the lower index wins, then the lower forwarded count.
ADD_SESSIONS = """
INSERT INTO accounts.key_backup_sessions AS stored
    (user_id, version, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::boolean[], $8::bytea[])
ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE
SET first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,
    is_verified = excluded.is_verified, session_data = excluded.session_data
WHERE (NOT excluded.is_verified, excluded.first_message_index, excluded.forwarded_count)
    < (NOT stored.is_verified, stored.first_message_index, stored.forwarded_count)
RETURNING xmax = 0
"""

MOVE_COUNTERS = """
UPDATE accounts.key_backup_versions SET etag = etag + $3, session_count = session_count + $4
WHERE user_id = $1 AND version = $2 RETURNING etag, session_count
"""

# One statement for each scope, so that each is planned for its index prefix. $3 is the room, $4 the session.
OF_VERSION = "user_id = $1 AND version = $2"
OF_ROOM = OF_VERSION + " AND room_id = $3"
OF_SESSION = OF_ROOM + " AND session_id = $4"

LIST_SESSIONS = """
SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
FROM accounts.key_backup_sessions WHERE """

DELETE_SESSIONS = "DELETE FROM accounts.key_backup_sessions WHERE "


@dataclass(frozen=True, slots=True)
class BackupVersion:
    """One backup; `etag` grows with every change of its sessions."""

    version: int
    algorithm: str
    auth_data: bytes
    etag: int
    session_count: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class BackedUpSession:
    """An encrypted megolm session key with the metadata that decides which of two is kept."""

    room_id: str
    session_id: str
    first_message_index: int
    forwarded_count: int
    is_verified: bool
    session_data: bytes


@dataclass(frozen=True, slots=True)
class BackupCounters:
    """What a change of sessions answers."""

    etag: int
    session_count: int


async def add_version(tx: Transaction, user_id: UserId, algorithm: str, auth_data: bytes) -> int:
    """Create the user's next version, which becomes the current one; numbers are never given twice."""
    await lock_user(tx, user_id)
    version: int = await tx.fetchval(ADD_VERSION, user_id, algorithm, auth_data)
    return version


async def lock_user(tx: Transaction, user_id: UserId) -> None:
    """Hold off other changes of the user's backups until the transaction ends; taken first."""
    await tx.execute(LOCK_USER, user_id)


async def find_current(tx: Transaction, user_id: UserId) -> BackupVersion | None:
    """The newest version that was not deleted."""
    row = await tx.fetchrow(CURRENT_VERSION, user_id)
    return None if row is None else BackupVersion(*row)


async def find_version(tx: Transaction, user_id: UserId, version: int) -> BackupVersion | None:
    """A version, deleted or not."""
    row = await tx.fetchrow(VERSION, user_id, version)
    return None if row is None else BackupVersion(*row)


async def set_auth_data(tx: Transaction, user_id: UserId, version: int, auth_data: bytes) -> None:
    """Replace a version's auth_data."""
    await tx.execute(SET_AUTH_DATA, user_id, version, auth_data)


async def delete_version(tx: Transaction, user_id: UserId, version: int) -> None:
    """Delete a version with all its sessions; its number stays known as deleted."""
    await tx.execute(DELETE_VERSION, user_id, version)
    await tx.execute(DELETE_VERSION_SESSIONS, user_id, version)


async def add_sessions(
    tx: Transaction, user_id: UserId, version: int, sessions: Sequence[BackedUpSession]
) -> BackupCounters:
    """Store sessions (no session twice), each where it is better than the stored one; the caller holds lock_user."""
    rows = await tx.fetch(
        ADD_SESSIONS,
        user_id,
        version,
        [one.room_id for one in sessions],
        [one.session_id for one in sessions],
        [one.first_message_index for one in sessions],
        [one.forwarded_count for one in sessions],
        [one.is_verified for one in sessions],
        [one.session_data for one in sessions],
    )
    return await _move_counters(tx, user_id, version, changed=bool(rows), added=sum(row[0] for row in rows))


async def list_sessions(
    tx: Transaction, user_id: UserId, version: int, room_id: str | None = None, session_id: str | None = None
) -> list[BackedUpSession]:
    """The sessions of a version, of one room of it, or one session of that room."""
    where, scope = _scope(room_id, session_id)
    rows = await tx.fetch(LIST_SESSIONS + where, user_id, version, *scope)
    return [BackedUpSession(*row) for row in rows]


async def delete_sessions(
    tx: Transaction, user_id: UserId, version: int, room_id: str | None = None, session_id: str | None = None
) -> BackupCounters:
    """Delete the sessions that list_sessions would give; the caller holds lock_user."""
    where, scope = _scope(room_id, session_id)
    status: str = await tx.execute(DELETE_SESSIONS + where, user_id, version, *scope)
    gone = int(status.rpartition(" ")[2])  # "DELETE <rows>"
    return await _move_counters(tx, user_id, version, changed=gone > 0, added=-gone)


def _scope(room_id: str | None, session_id: str | None) -> tuple[str, tuple[str, ...]]:
    if room_id is None:
        return OF_VERSION, ()
    if session_id is None:
        return OF_ROOM, (room_id,)
    return OF_SESSION, (room_id, session_id)


async def _move_counters(
    tx: Transaction, user_id: UserId, version: int, *, changed: bool, added: int
) -> BackupCounters:
    row = await tx.fetchrow(MOVE_COUNTERS, user_id, version, int(changed), added)
    assert row is not None
    return BackupCounters(*row)
