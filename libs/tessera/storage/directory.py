"""The published room directory, and the summaries of rooms that it shows.

That a room is published is primary data. The summary is a projection of the room's state: a row
remembers the (incarnation, position) it was made at and yields to a later one only, so that it can
be written by several appliers and rebuilt.

Spec: C-S API §Published room directory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matrixcore.identifiers import RoomId
from tessera.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class RoomSummary:
    """What the directory shows of a room, as of (incarnation, position) of its partition."""

    room_id: RoomId
    incarnation: int
    position: int
    name: str | None
    topic: str | None
    canonical_alias: str | None
    avatar_url: str | None
    room_type: str | None
    join_rule: str
    guest_can_join: bool
    world_readable: bool
    encryption: str | None
    room_version: str | None
    joined_members: int


class PublishedRoom(NamedTuple):
    """One line of the directory."""

    room_id: RoomId
    name: str | None
    topic: str | None
    canonical_alias: str | None
    avatar_url: str | None
    room_type: str | None
    join_rule: str
    guest_can_join: bool
    world_readable: bool
    joined_members: int


_SET_PUBLISHED = """
INSERT INTO accounts.room_directory (room_id, published) VALUES ($1, $2)
ON CONFLICT (room_id) DO UPDATE SET published = EXCLUDED.published
"""

_IS_PUBLISHED = "SELECT published FROM accounts.room_directory WHERE room_id = $1"

_SUMMARY = """incarnation, position, name, topic, canonical_alias, avatar_url, room_type, join_rule, guest_can_join,
    world_readable, encryption, room_version, joined_members"""

_SET_SUMMARIES = f"""
INSERT INTO accounts.room_directory AS d (room_id, {_SUMMARY})
SELECT DISTINCT ON (room_id) * FROM unnest(
    $1::text[], $2::int[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::boolean[], $11::boolean[], $12::text[], $13::text[], $14::bigint[]) AS i (room_id, {_SUMMARY})
ORDER BY room_id, incarnation DESC, position DESC
ON CONFLICT (room_id) DO UPDATE SET
    ({_SUMMARY}) = (EXCLUDED.incarnation, EXCLUDED.position, EXCLUDED.name, EXCLUDED.topic, EXCLUDED.canonical_alias,
        EXCLUDED.avatar_url, EXCLUDED.room_type, EXCLUDED.join_rule, EXCLUDED.guest_can_join, EXCLUDED.world_readable,
        EXCLUDED.encryption, EXCLUDED.room_version, EXCLUDED.joined_members)
WHERE (EXCLUDED.incarnation, EXCLUDED.position) > (d.incarnation, d.position)
"""  # noqa: S608  constant text

_LINE = """room_id, name, topic, canonical_alias, avatar_url, room_type, join_rule, guest_can_join, world_readable,
    joined_members"""

# Conditions with places for the numbers of their parameters: each combination is a query with a plan of its own.
_TERM = "lower(concat_ws(' ', name, topic, canonical_alias)) LIKE ${0}"
_TYPES = "coalesce(room_type, '') = ANY(${0}::text[])"  # an empty string in it stands for rooms without a type
# The first half is what the index is entered by.
_AFTER = "joined_members <= ${0} AND (joined_members < ${0} OR room_id > ${1})"
_BEFORE = "joined_members >= ${0} AND (joined_members > ${0} OR room_id < ${1})"

_PAGE = f"SELECT {_LINE} FROM accounts.room_directory WHERE {{where}} ORDER BY {{order}} LIMIT ${{limit}}"  # noqa: S608  constant text
_COUNT = "SELECT count(*) FROM accounts.room_directory WHERE {where}"
# Which rooms are looked at: those of the directory, those of one network, or all of both.
_OF_NETWORK = "room_id IN (SELECT n.room_id FROM accounts.network_rooms n WHERE n.instance = $1)"
_OF_ALL = "(published OR room_id IN (SELECT n.room_id FROM accounts.network_rooms n))"
_ADD_TO_NETWORK = "INSERT INTO accounts.network_rooms (instance, room_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_TAKE_FROM_NETWORK = "DELETE FROM accounts.network_rooms WHERE instance = $1 AND room_id = $2"
_FORWARD, _BACKWARD = "joined_members DESC, room_id", "joined_members, room_id DESC"


async def set_published(tx: Transaction, room_id: RoomId, published: bool) -> None:
    """Publish a room in the directory, or take it out."""
    await tx.execute(_SET_PUBLISHED, room_id, published)


async def set_in_network(tx: Transaction, instance: str, room_id: RoomId, published: bool) -> None:
    """Publish a room in the list of a network, or take it out."""
    await tx.execute(_ADD_TO_NETWORK if published else _TAKE_FROM_NETWORK, instance, room_id)


async def is_published(tx: Transaction, room_id: RoomId) -> bool:
    """Whether a room is in the directory."""
    return bool(await tx.fetchval(_IS_PUBLISHED, room_id))


async def set_summaries(tx: Transaction, summaries: Sequence[RoomSummary]) -> None:
    """Bring rooms' summaries up to date; older ones than the stored are ignored. Repeatable."""
    if not summaries:
        return
    await tx.execute(
        _SET_SUMMARIES,
        [summary.room_id for summary in summaries],
        [summary.incarnation for summary in summaries],
        [summary.position for summary in summaries],
        [summary.name for summary in summaries],
        [summary.topic for summary in summaries],
        [summary.canonical_alias for summary in summaries],
        [summary.avatar_url for summary in summaries],
        [summary.room_type for summary in summaries],
        [summary.join_rule for summary in summaries],
        [summary.guest_can_join for summary in summaries],
        [summary.world_readable for summary in summaries],
        [summary.encryption for summary in summaries],
        [summary.room_version for summary in summaries],
        [summary.joined_members for summary in summaries],
    )


async def list_published(
    tx: Transaction,
    *,
    search_term: str | None = None,
    room_types: Sequence[str | None] | None = None,
    after: tuple[int, RoomId] | None = None,
    before: tuple[int, RoomId] | None = None,
    network: str | None = "",
    limit: int,
) -> list[PublishedRoom]:
    """A page of the directory, largest rooms first.

    Args:
        search_term: found in name, topic or canonical alias, in whatever case.
        room_types: None for any; None in it for rooms without a type.
        after, before: (joined_members, room_id) of the line that the page follows or precedes; at most one of them.
        network: the instance of an application service's network whose rooms are wanted; "" for the directory of this
            server, None for everything.
    """
    backwards = before is not None
    where = _Where.of(search_term, room_types, network)
    if (place := before or after) is not None:
        where.add(_BEFORE if backwards else _AFTER, *place)
    query = _PAGE.format(where=where.text, order=_BACKWARD if backwards else _FORWARD, limit=len(where.values) + 1)
    rows = await tx.fetch(query, *where.values, limit)
    if backwards:
        rows.reverse()
    return [PublishedRoom(*row) for row in rows]


async def count_published(
    tx: Transaction,
    *,
    search_term: str | None = None,
    room_types: Sequence[str | None] | None = None,
    network: str | None = "",
) -> int:
    """How many rooms match."""
    where = _Where.of(search_term, room_types, network)
    count: int = await tx.fetchval(_COUNT.format(where=where.text), *where.values)
    return count


@dataclass(slots=True)
class _Where:
    """Conditions and the values of their parameters."""

    text: str = "published"
    values: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, search_term: str | None, room_types: Sequence[str | None] | None, network: str | None) -> "_Where":
        where = cls(_OF_ALL) if network is None else cls(_OF_NETWORK, [network]) if network else cls()
        if search_term:
            where.add(_TERM, _pattern(search_term))
        if room_types is not None:
            where.add(_TYPES, [room_type or "" for room_type in room_types])
        return where

    def add(self, condition: str, *values: Any) -> None:
        """One more condition; {0}, {1}, ... in its text stand for its own values."""
        numbers = range(len(self.values) + 1, len(self.values) + 1 + len(values))
        self.text += " AND " + condition.format(*numbers)
        self.values += values


def _pattern(search_term: str) -> str:
    escaped = search_term.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
