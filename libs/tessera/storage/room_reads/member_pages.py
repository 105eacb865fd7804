"""A page of a room's history with all that a member's reading of it begins with, in one statement.

A round trip costs both sides about as much as the reading of thirty events, so that a page which takes one
instead of three is worth a statement of its own. The events come as one array for each column, which costs
asyncpg less than rows.
"""

from typing import NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EVENT_COLUMNS, HIGHEST, LOWEST, EventRow
from tessera.storage.room_reads.members import MembershipStep
from tessera.storage.room_reads.rooms import ROOM_COLUMNS, ROOM_FROM, RoomRow, room_with_steps


class MemberPage(NamedTuple):
    """A room, the memberships that one user has had in it, oldest first, and events of it.

    Attributes:
        has_relations: whether anything that is bundled may relate to any of the events.
    """

    room: RoomRow
    steps: list[MembershipStep]
    has_relations: bool
    events: list[EventRow]


_NAMES = ", ".join(EventRow._fields)
_ARRAYS = ", ".join(f"array_agg({name}) AS {name}" for name in EventRow._fields)
_BEFORE_ARRAYS = 13  # columns: the room, the steps, has_relations

# Constant text is put together here; values are always parameters.
_PAGE = f"""
SELECT {ROOM_COLUMNS}, EXISTS (
    SELECT FROM rooms.events c
    WHERE c.room_id = $1 AND c.relates_to = ANY(page.event_id) AND c.anchor IS NOT NULL AND c.redacted_by IS NULL
      AND c.rel_type IN ('m.replace', 'm.reference', 'm.thread')
), page.*
FROM {ROOM_FROM}
CROSS JOIN (
    SELECT {_ARRAYS} FROM (
        SELECT {EVENT_COLUMNS} FROM rooms.events e
        WHERE e.room_id = $1 AND (e.anchor, e.sub) > ($3, $4) AND (e.anchor, e.sub) <= ($5, $6)
          AND e.anchor IS NOT NULL
        ORDER BY e.anchor {{direction}}, e.sub {{direction}} LIMIT $7
    ) AS e ({_NAMES})
) page
WHERE r.room_id = $1
"""  # noqa: S608  constant text
_PAGES = {True: _PAGE.format(direction="DESC"), False: _PAGE.format(direction="ASC")}


async def find_member_page(
    tx: Transaction,
    room_id: RoomId,
    user_id: UserId,
    *,
    after: OrderKey | None,
    up_to: OrderKey | None,
    backwards: bool,
    limit: int,
) -> MemberPage | None:
    """The first `limit` events with after < key <= up_to, judged by nobody; None if the room is not known here.

    Args:
        after, up_to: points of the room's order, None for its ends.
        backwards: newest first.
    """
    bounds = (*(after or LOWEST), *(up_to or HIGHEST))
    row = await tx.fetchrow(_PAGES[backwards], room_id, user_id, *bounds, limit)
    if row is None:
        return None
    room, steps = room_with_steps(row)
    arrays = row[_BEFORE_ARRAYS:]
    # An array of no rows is NULL.
    events = [] if arrays[0] is None else list(map(EventRow._make, zip(*arrays, strict=True)))
    return MemberPage(room, steps, row[_BEFORE_ARRAYS - 1], events)
