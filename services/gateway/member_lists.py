"""The members of large rooms, kept ready in memory: a client asks for all of them when it opens the room.

A list is brought up to date by one query, which names the stretches in which something changed since; only these are
read again. So what an answer costs PostgreSQL depends on what happened, not on how many members there are.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from matrixcore.identifiers import RoomId
from matrixcore.room_versions import RoomVersionRules
from services.gateway.member_stretches import STRETCH, MemberStretch, make_stretch
from tessera.storage.database import Database, Transaction
from tessera.storage.room_reads.member_lists import MemberRow, find_changes, list_stretch

KEPT_FROM = 1_000  # joined members; the lists of smaller rooms are quickly made
MAX_BYTES = 64 * 1024 * 1024  # of all lists
MAX_ROOM_BYTES = 32 * 1024 * 1024  # of one, about 80,000 members; larger ones are made for each answer
MAX_ROOMS = 1_000
_NOW = 1 << 62  # above all positions


@dataclass(frozen=True, slots=True)
class MemberList:
    """All members of a room, as they were at a position; what changed later may be in it."""

    position: int
    stretches: Sequence[MemberStretch]


@dataclass(slots=True)
class _Kept:
    """A room's list.

    Attributes:
        ends: the last user of each stretch but the last.
        stretches: None for those that are to be read.
    """

    room_id: RoomId
    rules: RoomVersionRules
    incarnation: int = 0
    position: int = _NOW
    ends: list[str] = field(default_factory=list)
    stretches: list[MemberStretch | None] = field(default_factory=lambda: [None])
    size: int = 0
    is_too_large: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def forget(self) -> None:
        """Keep nothing."""
        self.ends, self.stretches, self.size = [], [None], 0


class MemberLists:
    """The lists of the rooms that were asked for last."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_room_bytes: int = MAX_ROOM_BYTES) -> None:
        self._max_bytes = max_bytes
        self._max_room_bytes = max_room_bytes
        self._rooms: OrderedDict[RoomId, _Kept] = OrderedDict()

    async def find(self, database: Database, room_id: RoomId, rules: RoomVersionRules) -> MemberList | None:
        """The members as they are now; None if there are too many to be kept."""
        kept = self._rooms.setdefault(room_id, _Kept(room_id, rules))
        self._rooms.move_to_end(room_id)
        async with kept.lock:
            if kept.is_too_large:
                return None
            try:
                async with database.reading() as tx:
                    found = await self._bring_up_to_date(tx, kept)
            finally:
                kept.size = sum(stretch.size for stretch in kept.stretches if stretch is not None)
                self._make_room()
        return found

    async def _bring_up_to_date(self, tx: Transaction, kept: _Kept) -> MemberList | None:
        changes = await find_changes(tx, kept.room_id, kept.position, kept.ends)
        if changes is None:
            kept.forget()
            return MemberList(0, ())
        if changes.is_unknown or changes.incarnation != kept.incarnation:
            kept.forget()
        else:
            for number in changes.stretches:
                kept.stretches[number] = None
        kept.incarnation, kept.position = changes.incarnation, changes.position
        await self._fill(tx, kept)
        if kept.is_too_large:
            kept.forget()
            return None
        return MemberList(kept.position, [stretch for stretch in kept.stretches if stretch is not None])

    async def _fill(self, tx: Transaction, kept: _Kept) -> None:
        """Read the stretches that are missing, each while the one before it is made."""
        number = _next_missing(kept, 0)
        rows = [] if number is None else await _read(tx, kept, number)
        size = sum(stretch.size for stretch in kept.stretches if stretch is not None)
        while number is not None:
            following = _next_missing(kept, number + 1)
            making = make_stretch(rows, kept.rules, kept.room_id)
            if following is None:
                made, rows = await making, []
            else:
                made, rows = await asyncio.gather(making, _read(tx, kept, following))
            kept.stretches[number] = made
            size += made.size
            if size > self._max_room_bytes:
                kept.is_too_large = True
                return
            number = following

    def _make_room(self) -> None:
        """Forget the lists that were not asked for the longest time."""
        size = sum(kept.size for kept in self._rooms.values())
        while size > self._max_bytes or len(self._rooms) > MAX_ROOMS:
            _, oldest = self._rooms.popitem(last=False)
            size -= oldest.size


def _next_missing(kept: _Kept, start: int) -> int | None:
    return next((number for number in range(start, len(kept.stretches)) if kept.stretches[number] is None), None)


async def _read(tx: Transaction, kept: _Kept, number: int) -> list[MemberRow]:
    """The members of a stretch; those who are too many for it become one of their own, to be read next."""
    after = kept.ends[number - 1] if number else ""
    up_to = kept.ends[number] if number < len(kept.ends) else None
    limit = STRETCH if up_to is None else 2 * STRETCH  # so that one who joins does not split a full one
    rows = await list_stretch(tx, kept.room_id, after, limit, up_to=up_to)
    if len(rows) == limit:
        kept.ends.insert(number, rows[-1].state_key)
        kept.stretches.insert(number + 1, None)
    return rows
