"""Purges of rooms' history: the row is the debt. Spec: none; DESIGN.md section 4 (records of kind purged)."""

from typing import NamedTuple

from matrixcore.identifiers import RoomId
from tessera.storage.database import Transaction

CLAIM_SECONDS = 60
KEPT_DAYS = 1  # how long the end of a purge can be asked for


class RoomPurge(NamedTuple):
    """One purge; `up_to` is the last anchor that it deletes at."""

    purge_id: str
    room_id: RoomId
    up_to: int
    with_local_events: bool
    phase: str = "delete"
    error: str = ""


_COLUMNS = "purge_id, room_id, up_to, with_local_events, phase, error"

_ADD = "INSERT INTO accounts.room_purges (purge_id, room_id, up_to, with_local_events) VALUES ($1, $2, $3, $4)"

_FIND = f"SELECT {_COLUMNS} FROM accounts.room_purges WHERE purge_id = $1"  # noqa: S608  constant text

_FIND_OPEN = """
SELECT purge_id FROM accounts.room_purges WHERE phase IN ('delete', 'announce') AND room_id = $1 LIMIT 1
"""

_CLAIM = f"""
UPDATE accounts.room_purges SET claimed_until = now() + interval '{CLAIM_SECONDS} seconds'
WHERE purge_id = (
    SELECT purge_id FROM accounts.room_purges WHERE phase IN ('delete', 'announce') AND claimed_until <= now()
    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING {_COLUMNS}
"""  # noqa: S608  constant text

_HOLD = f"""
UPDATE accounts.room_purges SET claimed_until = now() + interval '{CLAIM_SECONDS} seconds' WHERE purge_id = $1
"""  # noqa: S608  constant text

_ADVANCE = "UPDATE accounts.room_purges SET phase = $2, error = $3 WHERE purge_id = $1"

_SWEEP = f"""
DELETE FROM accounts.room_purges
WHERE phase IN ('complete', 'failed') AND created_at < now() - interval '{KEPT_DAYS} days'
"""  # noqa: S608  constant text


async def add_purge(tx: Transaction, purge: RoomPurge) -> None:
    """Note a purge that is to be done."""
    await tx.execute(_ADD, purge.purge_id, purge.room_id, purge.up_to, purge.with_local_events)


async def find_purge(tx: Transaction, purge_id: str) -> RoomPurge | None:
    """A purge that is under way, or ended within the last day."""
    row = await tx.fetchrow(_FIND, purge_id)
    return None if row is None else RoomPurge(*row)


async def has_open_purge(tx: Transaction, room_id: RoomId) -> bool:
    """Whether the room is being purged."""
    return await tx.fetchval(_FIND_OPEN, room_id) is not None


async def claim_purge(tx: Transaction) -> RoomPurge | None:
    """The oldest purge that nobody is at; it is the caller's for CLAIM_SECONDS."""
    row = await tx.fetchrow(_CLAIM)
    return None if row is None else RoomPurge(*row)


async def hold_purge(tx: Transaction, purge: RoomPurge) -> None:
    """Keep a claim for CLAIM_SECONDS more."""
    await tx.execute(_HOLD, purge.purge_id)


async def advance_purge(tx: Transaction, purge: RoomPurge, phase: str, error: str = "") -> RoomPurge:
    """What is to be done next, or how it ended."""
    await tx.execute(_ADVANCE, purge.purge_id, phase, error)
    return purge._replace(phase=phase, error=error)


async def sweep_purges(tx: Transaction) -> None:
    """Forget those that ended long ago."""
    await tx.execute(_SWEEP)
