"""The rooms of an answer read from one shard: timelines, state, members, summaries and unread counts.

Everything comes from one snapshot, a dozen statements at most, whatever the number of rooms. What is told ends at
positions that were fixed before; the state of a room may be somewhat newer, and is then told again.

Spec: MSC4186 §Room results.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from matrixcore.identifiers import EventId, RoomId, StateKey, UserId
from matrixcore.visibility import Sight
from services.sync.lazy_members import Seen, with_members
from services.sync.rendering import display_name_of, has_text
from services.sync.room_plan import JOIN
from services.sync.room_sections import UserView
from services.sync.sliding.connections import UnknownPos
from services.sync.sliding.required_state import MEMBER
from services.sync.sliding.room_plan import RoomTask
from tessera.pagination_token import point_before
from tessera.records import OrderKey
from tessera.room_visibility import MembershipHistory, drop_unseen, sight_of
from tessera.storage import sliding_rooms, sync_reads
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.relations import Bundle, list_room_bundles
from tessera.storage.sliding_rooms import StateWish
from tessera.storage.sync_reads import EVERYTHING, KnownRoom, SyncRoom
from tessera.sync_token import Point
from tessera.unread import RoomUnread, count_unread

# Rooms are read in groups of these limits, so that the statements are few whatever limits a client thinks of.
_LIMITS = (1, 5, 20, 101)
_IGNORED_SCAN = 100  # events looked at for users who ignore somebody
_NOWHERE = Point(1, 0)
_NAME, _AVATAR = ("m.room.name", ""), ("m.room.avatar", "")


@dataclass(slots=True)
class ReadRoom:
    """A room as it was read.

    Attributes:
        is_fresh: told from the beginning.
        has_events: whether there are any above the floor, shown or not.
        start: the point before the timeline.
        state: of what is wanted, all of it or what changed; with `name` and `avatar` of the same.
        gone: keys of the state that have no event any longer.
        heroes: None where they are not told.
        members: of those needed lazily and of heroes.
    """

    task: RoomTask
    row: SyncRoom
    history: MembershipHistory
    is_fresh: bool
    floor: int
    up_to: int
    is_cut: bool
    has_events: bool = False
    events: list[EventRow] = field(default_factory=list)
    limited: bool = False
    num_live: int = 0
    state: dict[StateKey, EventRow] = field(default_factory=dict)
    told_keys: set[StateKey] = field(default_factory=set)
    gone: list[StateKey] = field(default_factory=list)
    heroes: list[UserId] | None = None
    members: dict[UserId, EventRow] = field(default_factory=dict)
    unread: RoomUnread | None = None
    bundles: dict[EventId, Bundle] = field(default_factory=dict)

    @property
    def start(self) -> OrderKey:
        """The point before the timeline."""
        return point_before(self.events[0].order) if self.events else OrderKey(self.up_to, 0)

    @property
    def is_quiet(self) -> bool:
        """Whether it was read for nothing: the client has all of it."""
        if not self.task.may_be_quiet or self.is_fresh or self.limited or self.is_cut:
            return False
        return not (self.has_events or self.state or self.gone or self.heroes is not None or self.row.members_changed)

    @property
    def tells_all(self) -> bool:
        """Whether its timeline is read from the newest event back, whatever the client has of it."""
        return self.is_fresh or self.task.is_expanded

    @property
    def has_name(self) -> bool:
        """Whether it is named by m.room.name."""
        return has_text(self.row.name_pdu, "name")


class ShardRooms:
    """Reads the rooms of one shard for one request; use once.

    Args:
        positions: up to where rooms are told, by partition.
        seen: the members that the client was sent.
    """

    def __init__(
        self,
        tx: Transaction,
        user_id: UserId,
        view: UserView,
        positions: Mapping[int, Point],
        seen: Seen,
        *,
        with_counts: bool,
        with_gone: bool,
    ) -> None:
        self._tx = tx
        self._user_id = user_id
        self._view = view
        self._positions = positions
        self._with_counts = with_counts
        self._with_gone = with_gone
        self.seen = seen
        self.rooms: dict[RoomId, ReadRoom] = {}

    async def read(self, tasks: Sequence[RoomTask]) -> dict[RoomId, ReadRoom]:
        """The rooms, without those that this server knows nothing of.

        Raises:
            UnknownPos: PostgreSQL went back in time.
        """
        await self._find_rooms(tasks)
        if not self.rooms:
            return {}
        await self._read_timelines()
        await self._read_state()
        await self._read_past_state()
        await self._read_heroes()
        await self._read_members()
        await self._read_bundles()
        if self._with_counts:
            await self._count_unread()
        return self.rooms

    async def _find_rooms(self, tasks: Sequence[RoomTask]) -> None:
        by_id = {task.room_id: task for task in tasks}
        known = {room_id: KnownRoom(-1, task.floor, 0) for room_id, task in by_id.items()}
        partitions = {task.partition for task in tasks}
        heads, rows = await sync_reads.list_sync_rooms(self._tx, self._user_id, known, partitions)
        for task in tasks:
            if not task.is_left and heads.get(task.partition, _NOWHERE) < self._positions[task.partition]:
                raise UnknownPos
        for room_id, row in rows.items():
            self.rooms[room_id] = self._begin(by_id[room_id], row)

    def _begin(self, task: RoomTask, row: SyncRoom) -> ReadRoom:
        room, history = task.wanted.room, MembershipHistory(self._user_id, row.steps)
        floor, up_to, is_cut = task.floor, task.up_to, False
        for step in row.steps:
            anchor = step.order.anchor
            if step.membership == JOIN:
                continue
            if task.sent is not None and task.sent.stay < anchor < room.position:
                floor = -1  # away in between: another stay begins
            if anchor > room.position and not task.is_left:
                up_to, is_cut = min(up_to, anchor), True
                break
        return ReadRoom(task, row, history, floor < 0, floor, up_to, is_cut)

    async def _read_timelines(self) -> None:
        groups: dict[int, dict[RoomId, tuple[OrderKey, int]]] = {}
        for room_id, room in self.rooms.items():
            wanted = room.task.wanted.timeline_limit + 1
            scan = next(limit for limit in _LIMITS if limit >= wanted)
            if self._view.ignored:
                scan = max(scan, _IGNORED_SCAN)
            after = EVERYTHING if room.tells_all else OrderKey(room.floor, 0)
            groups.setdefault(scan, {})[room_id] = (after, room.up_to)
        for scan, spans in groups.items():
            for room_id, rows in (await sync_reads.list_timelines(self._tx, spans, scan)).items():
                self._take_timeline(self.rooms[room_id], rows, scan)

    def _take_timeline(self, room: ReadRoom, rows: list[EventRow], scan: int) -> None:
        limit, ignored = room.task.wanted.timeline_limit, self._view.ignored
        fetched = len(rows)
        room.has_events = fetched > 0
        if ignored:
            rows = [row for row in rows if row.state_key is not None or row.sender not in ignored]
        if room.task.only_own_leave:
            shown = [row for row in rows if row.type == MEMBER and row.state_key == self._user_id]
        elif room.tells_all or room.task.is_left:
            shown = [row for row in rows if sight_of(row, room.history) is not Sight.HIDDEN]
        else:
            shown = rows
        is_purged = not room.tells_all and room.row.purged_anchor > room.floor
        gap = room.row.newest_gap(is_fresh=room.tells_all, up_to=room.up_to)
        if gap is not None:  # what stands on both sides of it must not be taken for neighbours
            shown = [row for row in shown if row.order > gap]
        has_more = fetched >= scan and len(shown) < fetched  # of what was left out, nobody knows what lies beyond
        room.limited = len(shown) > limit or has_more or is_purged or gap is not None
        room.events = shown[-limit:] if limit else []
        room.num_live = sum(1 for row in room.events if row.order.anchor > room.task.live_from)

    async def _read_state(self) -> None:
        """What is wanted of the state of rooms that the user is in."""
        present = {room_id: room for room_id, room in self.rooms.items() if not _is_past(room)}
        wishes = [wish for room_id, room in present.items() for wish in _wishes(room_id, room)]
        for room_id, rows in (await sliding_rooms.list_state(self._tx, wishes)).items():
            room = present[room_id]
            for row in rows:
                self._take_state(room, row)
        if self._with_gone:
            floors = {room_id: room.floor for room_id, room in present.items() if not room.is_fresh}
            for room_id, keys in (await sliding_rooms.list_gone(self._tx, floors)).items() if floors else ():
                present[room_id].gone = keys

    async def _read_past_state(self) -> None:
        """The state of rooms that the user left, at the end of the stay."""
        past = {room_id: room for room_id, room in self.rooms.items() if _is_past(room)}
        fresh = {
            room_id: (OrderKey(room.up_to, 0), room.up_to)
            for room_id, room in past.items()
            if room.is_fresh and not room.task.only_own_leave
        }
        for with_all in (False, True):
            spans = {
                room_id: span
                for room_id, span in fresh.items()
                if past[room_id].task.wanted.required_state.wants_all_members is with_all
            }
            if spans:
                for room_id, (rows, _) in (
                    await sync_reads.list_states(self._tx, spans, with_members=with_all)
                ).items():
                    for row in rows:
                        self._take_state(past[room_id], row)
        changed = {
            room_id: (room.floor, OrderKey(room.up_to, 0)) for room_id, room in past.items() if room_id not in fresh
        }
        if changed:
            for room_id, changes in (await sync_reads.list_state_changes(self._tx, changed)).items():
                for change in changes:
                    if change.event is not None:
                        self._take_state(past[room_id], change.event)
        own = {
            room_id: (OrderKey(room.up_to, 0), [self._user_id]) for room_id, room in past.items() if room_id in fresh
        }
        for room_id, members in (await sync_reads.list_members_at(self._tx, own)).items():
            self._take_state(past[room_id], members[self._user_id])

    def _take_state(self, room: ReadRoom, row: EventRow) -> None:
        key = (row.type, row.state_key or "")
        wish = room.task.wanted.required_state
        room.state[key] = row
        # Where members come lazily, all that changed without a gap are told.
        is_lazy = wish.lazy_members and row.type == MEMBER and not room.is_fresh and not room.limited
        if wish.matches(*key) or is_lazy:
            room.told_keys.add(key)

    async def _read_heroes(self) -> None:
        nameless = []
        for room_id, room in self.rooms.items():
            is_due = room.is_fresh or room.row.members_changed or _NAME in room.state or _NAME in room.gone
            if not is_due or room.has_name or _is_past(room):
                continue
            if room.row.name_pdu is None and not has_text(room.row.alias_pdu, "alias") and room.row.heroes is not None:
                room.heroes = room.row.heroes
            else:
                nameless.append(room_id)
        if nameless:
            for room_id, heroes in (await sync_reads.list_heroes(self._tx, nameless, self._user_id)).items():
                self.rooms[room_id].heroes = heroes

    async def _read_members(self) -> None:
        """Member events of those who need them for the timeline and are not known, and of heroes."""
        wanted: dict[RoomId, tuple[OrderKey, Collection[UserId]]] = {}
        lazy: dict[RoomId, set[UserId]] = {}
        for room_id, room in self.rooms.items():
            wish = room.task.wanted.required_state
            needed: set[UserId] = set()
            if wish.lazy_members and not wish.wants_all_members:
                needed = {row.sender for row in room.events}
                needed |= {UserId(row.state_key or "") for row in room.events if row.type == MEMBER}
                told = {UserId(key[1]) for key in room.told_keys if key[0] == MEMBER}
                known = frozenset[UserId]() if room.is_fresh or room.limited else self.seen.get(room_id, frozenset())
                self.seen = with_members(self.seen, room_id, needed | told)
                needed -= told | known
            lazy[room_id] = needed
            if users := needed.union(room.heroes or ()):
                wanted[room_id] = (OrderKey(room.up_to, 0), users)
        for room_id, members in (await sync_reads.list_members_at(self._tx, wanted)).items():
            room = self.rooms[room_id]
            room.members = members
            for user_id in lazy[room_id] & members.keys():
                room.state[MEMBER, user_id] = members[user_id]
                room.told_keys.add((MEMBER, user_id))

    async def _read_bundles(self) -> None:
        events = {
            room_id: (room.up_to, [row.event_id for row in room.events if row.state_key is None])
            for room_id, room in self.rooms.items()
            if room.events and (room.limited or room.tells_all)
        }
        if not events:
            return
        for room_id, found in (await list_room_bundles(self._tx, events, self._user_id, self._view.ignored)).items():
            room = self.rooms[room_id]
            drop_unseen(found, room.history)
            room.bundles = found

    async def _count_unread(self) -> None:
        joined = [room_id for room_id, room in self.rooms.items() if not room.task.is_left]
        names: dict[RoomId, str] = {}
        if self._view.evaluator is not None and joined:
            own = {room_id: (OrderKey(self.rooms[room_id].up_to, 0), [self._user_id]) for room_id in joined}
            members = await sync_reads.list_members_at(self._tx, own)
            found = {room_id: display_name_of(rows[self._user_id].pdu) for room_id, rows in members.items()}
            names = {room_id: name for room_id, name in found.items() if name is not None}
        counts = await count_unread(
            self._tx, self._user_id, joined, self._view.points, self._view.evaluator, names, self._view.ignored
        )
        for room_id, count in counts.items():
            self.rooms[room_id].unread = count


def _is_past(room: ReadRoom) -> bool:
    return room.task.is_left or room.is_cut


def _wishes(room_id: RoomId, room: ReadRoom) -> list[StateWish]:
    wish, old = room.task.wanted.required_state, room.task.old_wish
    floor = room.floor
    wishes = [StateWish(room_id, *key, floor) for key in (_NAME, _AVATAR)]
    for atom in wish.atoms:
        after = floor if not room.is_fresh and atom in old.atoms else -1
        wishes.append(StateWish(room_id, *atom.element, after, with_members=not atom.is_lazy))
    if wish.lazy_members and not room.is_fresh and not room.limited:
        wishes.append(StateWish(room_id, MEMBER, None, floor))
    return wishes
