"""Fetching what is missing of a room: what it is, what is here already, and which process does it.

Spec: none; DESIGN.md section 6.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, ServerName
from tessera.storage.database import Transaction

# A room is somebody's for a while, by PostgreSQL's clock, and nobody's before `not_before`.
_CLAIM = """
INSERT INTO rooms.fetches AS f (room_id, owner, leased_until)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (room_id) DO UPDATE SET owner = excluded.owner, leased_until = excluded.leased_until
WHERE f.leased_until < clock_timestamp() AND f.not_before < clock_timestamp()
RETURNING failures
"""
_RELEASE = """
UPDATE rooms.fetches SET owner = '', leased_until = '-infinity', failures = $3,
    not_before = clock_timestamp() + make_interval(secs => $4)
WHERE room_id = $1 AND owner = $2
"""
_RENEW = """
UPDATE rooms.fetches SET leased_until = clock_timestamp() + make_interval(secs => $3)
WHERE room_id = ANY($1::text[]) AND owner = $2
"""
_FORGET = "DELETE FROM rooms.fetches WHERE room_id = $1 AND owner = $2"
_LIST_OPEN = """
SELECT open.room_id FROM (
    SELECT room_id FROM rooms.missing_events UNION SELECT room_id FROM rooms.inbox WHERE state = 'staged'
) open
LEFT JOIN rooms.fetches f ON f.room_id = open.room_id
WHERE f.room_id IS NULL OR (f.leased_until < clock_timestamp() AND f.not_before < clock_timestamp())
LIMIT $1
"""
_EXPIRE = """
DELETE FROM rooms.inbox WHERE inbox_id = ANY(ARRAY(
    SELECT inbox_id FROM rooms.inbox
    WHERE state IN ('parked', 'staged') AND named_at < now() - make_interval(secs => $1) LIMIT $2
))
"""
_FIND_ROOM = "SELECT partition, room_version, create_event_id, forward_extremities FROM rooms.rooms WHERE room_id = $1"
_LIST_PARKED = """
SELECT DISTINCT ON (i.inbox_id) i.event_id, i.origin, i.pdu
FROM rooms.missing_events m JOIN rooms.inbox i USING (inbox_id)
WHERE m.room_id = $1 AND m.as_outlier = $2 ORDER BY i.inbox_id LIMIT $3
"""
_HAS_STAGED = "SELECT EXISTS (SELECT FROM rooms.inbox WHERE room_id = $1 AND state = 'staged')"
_FIND_KNOWN = """
SELECT event_id, outlier, false FROM rooms.events WHERE room_id = $1 AND event_id = ANY($2::text[])
UNION ALL
SELECT event_id, outlier, true FROM rooms.inbox WHERE room_id = $1 AND event_id = ANY($2::text[])
"""


class FetchedRoom(NamedTuple):
    """What fetching needs to know of a room."""

    partition: int
    room_version: str
    create_event_id: EventId
    forward_extremities: list[EventId]


class Parked(NamedTuple):
    """A PDU that waits."""

    event_id: EventId
    origin: ServerName
    pdu: bytes


class Known(NamedTuple):
    """Which of some events are here.

    Attributes:
        placed: as part of the room's history.
        lying: in the inbox as part of it.
        outliers: as auth events only, there or here.
    """

    placed: frozenset[EventId]
    lying: frozenset[EventId]
    outliers: frozenset[EventId]


async def claim(tx: Transaction, room_id: RoomId, owner: str, lease_seconds: float) -> int | None:
    """Take on a room: how often fetching for it has failed; None if it is somebody's, or not to be tried yet."""
    failures: int | None = await tx.fetchval(_CLAIM, room_id, owner, lease_seconds)
    return failures


async def renew(tx: Transaction, room_ids: Collection[RoomId], owner: str, lease_seconds: float) -> None:
    """Keep rooms that are still this owner's."""
    await tx.execute(_RENEW, list(room_ids), owner, lease_seconds)


async def release(tx: Transaction, room_id: RoomId, owner: str, failures: int, wait_seconds: float) -> None:
    """Give a room back, to be tried again after a while."""
    await tx.execute(_RELEASE, room_id, owner, failures, wait_seconds)


async def forget(tx: Transaction, room_id: RoomId, owner: str) -> None:
    """Give back a room for which fetching goes well."""
    await tx.execute(_FORGET, room_id, owner)


async def list_open(tx: Transaction, limit: int) -> list[RoomId]:
    """Rooms that lack something and are nobody's."""
    return [RoomId(row[0]) for row in await tx.fetch(_LIST_OPEN, limit)]


async def expire(tx: Transaction, seconds: float, limit: int) -> None:
    """Give up rows that have waited for ancestors too long."""
    await tx.execute(_EXPIRE, seconds, limit)


async def find_room(tx: Transaction, room_id: RoomId) -> FetchedRoom | None:
    """The room, None if it is not here."""
    row = await tx.fetchrow(_FIND_ROOM, room_id)
    return None if row is None else FetchedRoom(*row)


async def list_parked(tx: Transaction, room_id: RoomId, *, as_outlier: bool, limit: int) -> list[Parked]:
    """PDUs that wait for ancestors, or for events that suffice as outliers; the oldest first."""
    return [Parked(*row) for row in await tx.fetch(_LIST_PARKED, room_id, as_outlier, limit)]


async def has_staged(tx: Transaction, room_id: RoomId) -> bool:
    """Whether fetched events have not been taken in."""
    return bool(await tx.fetchval(_HAS_STAGED, room_id))


async def find_known(tx: Transaction, room_id: RoomId, event_ids: Collection[EventId]) -> Known:
    """Which of the events are here."""
    placed: set[EventId] = set()
    lying: set[EventId] = set()
    outliers: set[EventId] = set()
    wanted: Sequence[EventId] = list(event_ids)
    for event_id, outlier, in_inbox in await tx.fetch(_FIND_KNOWN, room_id, wanted) if wanted else ():
        (outliers if outlier else lying if in_inbox else placed).add(event_id)
    return Known(frozenset(placed), frozenset(lying), frozenset(outliers))
