"""What `tessera verify` asks a shard: the density of its log, its chains, events, and current state against history."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId
from tessera.storage.database import Transaction

# Positions are dense within an incarnation; a later incarnation begins above the one before.
_DENSITY = """
SELECT r.incarnation, min(r.position), max(r.position), count(*)
FROM rooms.records r WHERE r.partition = $1 GROUP BY r.incarnation ORDER BY r.incarnation
"""

_CHAIN = """
SELECT room_id, position FROM (
    SELECT room_id, position, room_previous,
           lag(position, 1, 0::bigint) OVER (PARTITION BY room_id ORDER BY position) AS before
    FROM rooms.records WHERE room_id = ANY($1::text[])
) r WHERE room_previous <> before LIMIT $2
"""

_MISSING_EVENTS = """
SELECT r.room_id, r.position FROM rooms.records r
LEFT JOIN rooms.events e ON e.room_id = r.room_id AND e.event_id = r.event_id
WHERE r.room_id = ANY($1::text[]) AND r.event_id IS NOT NULL AND e.event_id IS NULL LIMIT $2
"""

_LAST_POSITIONS = """
SELECT o.room_id, o.last_position FROM rooms.rooms o
WHERE o.room_id = ANY($1::text[]) AND o.last_position <>
      coalesce((SELECT max(r.position) FROM rooms.records r WHERE r.room_id = o.room_id), 0) LIMIT $2
"""

_STATE = """
WITH newest AS (
    SELECT DISTINCT ON (room_id, type, state_key) room_id, type, state_key, event_id FROM rooms.state_history
    WHERE room_id = ANY($1::text[]) ORDER BY room_id, type, state_key, anchor DESC, sub DESC
)
SELECT coalesce(c.room_id, n.room_id), coalesce(c.type, n.type), coalesce(c.state_key, n.state_key)
FROM (SELECT * FROM newest WHERE event_id IS NOT NULL) n
FULL JOIN (SELECT * FROM rooms.current_state WHERE room_id = ANY($1::text[])) c
    ON c.room_id = n.room_id AND c.type = n.type AND c.state_key = n.state_key
WHERE c.event_id IS DISTINCT FROM n.event_id LIMIT $2
"""

_EVENTS = """
SELECT e.event_id, coalesce(e.original_pdu, e.pdu), o.room_version FROM rooms.events e
JOIN rooms.rooms o ON o.room_id = e.room_id
WHERE e.room_id = $1 AND e.event_id > $2 ORDER BY e.event_id LIMIT $3
"""

MAX_FAULTS = 20  # of a kind on a page of rooms


class Density(NamedTuple):
    """The positions of one incarnation of a partition."""

    incarnation: int
    first: int
    last: int
    size: int


class StoredPdu(NamedTuple):
    """An event as it was hashed."""

    event_id: EventId
    pdu: bytes
    room_version: str


async def list_density(tx: Transaction, partition: int) -> list[Density]:
    """The incarnations of a partition, oldest first. Reads one index of the partition's records."""
    return [Density(*row) for row in await tx.fetch(_DENSITY, partition, timeout=600)]


async def list_broken_chains(tx: Transaction, room_ids: Sequence[RoomId]) -> list[str]:
    """Records that do not name the record of their room before them, or an event that is not there."""
    rooms = list(room_ids)
    faults = [f"{row[0]} at {row[1]}: room_previous" for row in await tx.fetch(_CHAIN, rooms, MAX_FAULTS)]
    faults += [f"{row[0]} at {row[1]}: no event" for row in await tx.fetch(_MISSING_EVENTS, rooms, MAX_FAULTS)]
    faults += [f"{row[0]}: last_position {row[1]}" for row in await tx.fetch(_LAST_POSITIONS, rooms, MAX_FAULTS)]
    return faults


async def list_wrong_state(tx: Transaction, room_ids: Sequence[RoomId]) -> list[str]:
    """Keys of current state that are not what their history ends with."""
    return [f"{row[0]}: {row[1]} {row[2]!r}" for row in await tx.fetch(_STATE, list(room_ids), MAX_FAULTS)]


async def list_pdus(tx: Transaction, room_id: RoomId, after: str, limit: int) -> list[StoredPdu]:
    """The next events of a room by ID, with the bytes that their IDs were made of."""
    return [StoredPdu(*row) for row in await tx.fetch(_EVENTS, room_id, after, limit)]
