"""The rooms of an answer read from one shard: timelines, states, receipts, summaries and unread counts.

Everything comes from the caller's one snapshot; a dozen statements at most, whatever the number of rooms.

Where a room forked, state changes without an event of the timeline, and an event of the timeline may not be the
state's. A client that is told `state` applies the timeline after it, so the timeline then begins above the last event
that would mislead it; `state_after` has no such doubt. That a key has lost its event, neither has words for.

Where events of other servers are missing, the timeline begins above the gap, so that nobody takes what stands on both
sides of it for neighbours; paging back from there fetches what is missing.

Spec: C-S API §Syncing.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import orjson

from matrixcore.filters import RoomEventFilter
from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.push_evaluation import PushEvaluator
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.visibility import Sight
from services.sync import tokens_ahead
from services.sync.lazy_members import Seen, with_members
from services.sync.rendering import EventRenderer, Json, display_name_of, has_text, receipt_event, unread_fields
from services.sync.room_plan import PlannedRoom, end_of_stay, is_interrupted
from services.sync.sync_request import SyncRequest
from tessera.erased_events import hide_erased
from tessera.event_serving import Reader
from tessera.pagination_token import encode_page_token, point_before
from tessera.records import OrderKey
from tessera.room_visibility import MembershipHistory, drop_unseen, sight_of
from tessera.storage import sync_reads
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.relations import Bundle, list_room_bundles
from tessera.storage.sync_reads import EVERYTHING, KnownRoom, StateRow, SyncRoom
from tessera.sync_token import Point
from tessera.unread import ReadPoints, RoomUnread, count_unread

MAX_SCAN = 2_000  # events looked at for a room's filtered timeline
SHORT_SCAN = 100

_MEMBER = "m.room.member"
_NAMING = ("m.room.name", "m.room.canonical_alias")


@dataclass(frozen=True, slots=True)
class UserView:
    """What the account store says of the reader.

    Attributes:
        points: the receipts by room.
        evaluator: for users with push rules of their own.
        erased: all erased users of this server.
    """

    ignored: frozenset[UserId] = frozenset()
    points: Mapping[RoomId, ReadPoints] = field(default_factory=dict)
    evaluator: PushEvaluator | None = None
    erased: Set[UserId] = frozenset()


@dataclass(slots=True)
class _Room:
    """A room while its section is put together."""

    planned: PlannedRoom
    row: SyncRoom
    floor: int  # position up to which the client knows the room; -1 for nothing
    is_fresh: bool  # told from the beginning
    up_to: int
    history: MembershipHistory
    events: list[EventRow] = field(default_factory=list)
    limited: bool = False
    state: dict[tuple[str, str], EventRow] = field(default_factory=dict)
    changed: dict[tuple[str, str], EventId] = field(default_factory=dict)  # from the timeline's beginning to the end
    lost: set[tuple[str, str]] = field(default_factory=set)  # keys that a resolution emptied
    heroes: list[UserId] | None = None
    with_summary: bool = False

    @property
    def cut(self) -> OrderKey | None:
        """The newest gap that the client does not know."""
        return self.row.newest_gap(is_fresh=self.is_fresh, up_to=self.up_to)

    @property
    def start(self) -> OrderKey:
        """The point before the timeline."""
        return point_before(self.events[0].order) if self.events else OrderKey(self.up_to, 0)

    @property
    def end(self) -> OrderKey:
        """The point after it."""
        return OrderKey(self.up_to, 0)


@dataclass(slots=True)
class ShardSections:
    """What one shard adds to an answer.

    Attributes:
        heads: of the partitions that were asked for.
        came, went: users whose joining or leaving may matter for device lists.
        entered: rooms whose members are new to the reader.
        seen: the lazy-loading memory with what these sections send.
        ahead: partitions in which the client's token says more than PostgreSQL.
        is_away: the shard does not answer, and nothing is said of it.
    """

    heads: dict[int, Point]
    join: dict[RoomId, Json]
    leave: dict[RoomId, Json]
    came: set[UserId]
    went: set[UserId]
    seen: Seen
    unread: dict[RoomId, RoomUnread] = field(default_factory=dict)
    ahead: frozenset[int] = frozenset()
    is_away: bool = False


class ShardReader:
    """Reads one shard for one request; use once."""

    def __init__(
        self,
        tx: Transaction,
        request: SyncRequest,
        view: UserView,
        now_ms: int,
        seen: Seen,
        recount: Collection[RoomId],
    ) -> None:
        self._tx = tx
        self._request = request
        self._view = view
        self._now_ms = now_ms
        self._seen = seen
        self._recount = recount
        self._user_id = request.user_id
        self._rooms: dict[RoomId, _Room] = {}
        self._unread: dict[RoomId, RoomUnread] = {}
        self._ahead: frozenset[int] = frozenset()

    async def read(self, planned: list[PlannedRoom], partitions: Collection[int]) -> ShardSections:
        """The sections of the planned rooms that have anything to say."""
        heads = await self._find_rooms(planned, partitions)
        if not self._rooms:
            return ShardSections(heads, {}, {}, set(), set(), self._seen, ahead=self._ahead)
        await self._read_timelines()
        await self._read_states()
        await self._read_summaries()
        if self._request.filter.lazy_load_members:
            await self._read_lazy_members()
        join, leave = await self._render()
        came, went = await self._find_moves()
        return ShardSections(heads, join, leave, came, went, self._seen, self._unread, self._ahead)

    async def _find_rooms(self, planned: list[PlannedRoom], partitions: Collection[int]) -> dict[int, Point]:
        by_id = {one.room.room_id: one for one in planned}
        known = {room_id: self._known(one) for room_id, one in by_id.items()}
        heads, rows = await sync_reads.list_sync_rooms(self._tx, self._user_id, known, partitions)
        if ahead := tokens_ahead.list_suspects(self._request.since, heads):
            self._ahead = await sync_reads.list_rewound(self._tx, ahead)
        if self._ahead:  # of these rooms the client knows nothing that can be told
            known = {room_id: self._known(one) for room_id, one in by_id.items()}
            heads, rows = await sync_reads.list_sync_rooms(self._tx, self._user_id, known, partitions)
        for room_id, row in rows.items():
            one = by_id[room_id]
            head = heads[row.partition]
            if is_interrupted(one, row.steps):
                one = replace(one, is_new=True, was_known=True)
                known[room_id] = self._known(one)
            floor = known[room_id].floor if known[room_id].incarnation == head.incarnation else -1
            if one.only_own_leave:
                floor = one.room.position - 1
            end = one.room.position if one.is_left else end_of_stay(one.room, row.steps)
            up_to = head.position if end is None else end
            history = MembershipHistory(self._user_id, row.steps)
            self._rooms[room_id] = _Room(one, row, floor, floor < 0, up_to, history)
        return heads

    def _known(self, one: PlannedRoom) -> KnownRoom:
        since = self._request.since
        point = None if one.is_new or since is None else since.positions.get(one.room.partition)
        if one.room.partition in self._ahead:
            point = None
        floor = -1 if point is None else point.position
        anyway = (
            one.is_left or one.moved_from is not None or self._request.full_state or one.room.room_id in self._recount
        )
        return KnownRoom(-1 if anyway else floor, floor, 0 if point is None else point.incarnation)

    async def _read_timelines(self) -> None:
        limit = self._request.timeline_limit
        wanted = self._request.filter.room.timeline
        is_plain = wanted.allows_everything and not self._view.ignored
        pending = dict(self._rooms)
        for scan in (limit + 1 if is_plain else max(SHORT_SCAN, limit + 1), MAX_SCAN):
            spans = {
                room_id: (EVERYTHING if room.is_fresh else OrderKey(room.floor, 0), room.up_to)
                for room_id, room in pending.items()
            }
            found = await sync_reads.list_timelines(self._tx, spans, scan)
            for room_id, rows in found.items():
                room = pending[room_id]
                kept, cut = self._shown(room, rows), room.cut
                if cut is not None:
                    kept = [row for row in kept if row.order > cut]
                is_purged = not room.is_fresh and room.row.purged_anchor > room.floor
                room.limited = len(kept) > limit or len(rows) >= scan or is_purged or cut is not None
                room.events = kept[len(kept) - limit :] if limit and len(kept) > limit else kept if limit else []
                if room.is_fresh and (room.planned.was_known or not room.planned.is_new):
                    room.limited = True
            # Few of many events were wanted: look further back for these rooms, once.
            pending = {
                room_id: room
                for room_id, room in pending.items()
                if len(found[room_id]) >= scan and len(room.events) < limit and room.cut is None
            }
            if not pending or is_plain or scan >= MAX_SCAN:
                break
        if wanted.needs_relations:
            await self._filter_relations()

    def _shown(self, room: _Room, rows: list[EventRow]) -> list[EventRow]:
        ignored = self._view.ignored
        if ignored:
            rows = [row for row in rows if row.state_key is not None or row.sender not in ignored]
        if room.is_fresh or room.planned.is_left:
            rows = [row for row in rows if sight_of(row, room.history) is not Sight.HIDDEN]
        wanted = self._request.filter.room.timeline
        return rows if wanted.allows_everything else [row for row in rows if _allows(wanted, room.row.room_id, row)]

    async def _filter_relations(self) -> None:
        wanted = self._request.filter.room.timeline
        events = [(room_id, row.event_id) for room_id, room in self._rooms.items() for row in room.events]
        children = await sync_reads.list_relations_to(self._tx, events)
        for room_id, room in self._rooms.items():
            room.events = [
                row for row in room.events if wanted.allows_relations(children.get((room_id, row.event_id), ()))
            ]

    async def _read_states(self) -> None:
        """State before the timeline, or after it for clients that want that."""
        await self._read_states_of(self._rooms)
        if self._request.use_state_after:
            return
        cut = {room_id: room for room_id, room in self._rooms.items() if _begin_above_misleading(room)}
        if cut:
            await self._read_states_of(cut)

    async def _read_states_of(self, rooms: Mapping[RoomId, _Room]) -> None:
        after_timeline = self._request.use_state_after
        complete = {room_id: room for room_id, room in rooms.items() if room.is_fresh or self._request.full_state}
        with_members = not self._request.filter.lazy_load_members
        if complete:
            spans = {
                room_id: (room.end if after_timeline else room.start, room.up_to) for room_id, room in complete.items()
            }
            states = await sync_reads.list_states(self._tx, spans, with_members=with_members)
            for room_id, (rows, changes) in states.items():
                complete[room_id].state = {(row.type, row.state_key or ""): row for row in rows}
                self._take_unexplained(complete[room_id], changes)
        if not after_timeline:
            gaps = {
                room_id: (room.floor, room.start)
                for room_id, room in rooms.items()
                if room.limited and room_id not in complete
            }
            if gaps:
                for room_id, changes in (await sync_reads.list_state_changes(self._tx, gaps)).items():
                    rooms[room_id].state = {one.key: one.event for one in changes if one.event is not None}
                    rooms[room_id].lost.update(one.key for one in changes if one.event is None)
        await self._read_unexplained({room_id: room for room_id, room in rooms.items() if room_id not in complete})

    async def _read_unexplained(self, rooms: Mapping[RoomId, _Room]) -> None:
        """Changes up to the end that no event of the timeline tells; with state_after all changes."""
        after_timeline = self._request.use_state_after
        spans = {
            room_id: (room.start.anchor - 1 if room.limited and not after_timeline else room.floor, room.end)
            for room_id, room in rooms.items()
        }
        if spans:
            for room_id, changes in (await sync_reads.list_state_changes(self._tx, spans)).items():
                self._take_unexplained(rooms[room_id], changes)

    def _take_unexplained(self, room: _Room, changes: Sequence[StateRow]) -> None:
        """Of each key only the newest of `changes` counts, which come in order."""
        told = frozenset() if self._request.use_state_after else frozenset(row.event_id for row in room.events)
        newest = {change.key: change.event for change in changes}
        room.changed = {key: event.event_id for key, event in newest.items() if event is not None}
        for key, event in newest.items():
            if event is None:
                room.state.pop(key, None)
                room.lost.add(key)
            elif event.event_id not in told:
                room.state[key] = event

    async def _read_summaries(self) -> None:
        nameless = []
        for room_id, room in self._rooms.items():
            if room.planned.is_left:
                continue
            changed = (*((row.type, row.state_key) for row in room.events), *room.state, *room.lost)
            named_anew = any(key[0] in _NAMING for key in changed)
            room.with_summary = room.is_fresh or self._request.full_state or room.row.members_changed or named_anew
            if not room.with_summary or has_text(room.row.name_pdu, "name") or has_text(room.row.alias_pdu, "alias"):
                continue
            if room.row.name_pdu is None and room.row.alias_pdu is None:
                room.heroes = room.row.heroes or []
            else:
                nameless.append(room_id)
        if nameless:  # named once, and no longer
            for room_id, heroes in (await sync_reads.list_heroes(self._tx, nameless, self._user_id)).items():
                self._rooms[room_id].heroes = heroes

    async def _read_lazy_members(self) -> None:
        """Member events of senders and heroes that the client does not have; the own one of a room told anew."""
        after_timeline = self._request.use_state_after
        repeat = self._request.filter.room.state.include_redundant_members
        wanted: dict[RoomId, tuple[OrderKey, Collection[UserId]]] = {}
        for room_id, room in self._rooms.items():
            told = {UserId(key[1]) for key in room.state if key[0] == _MEMBER}
            if not repeat and not room.is_fresh and not self._request.full_state:
                told |= self._seen.get(room_id, frozenset())
            needed: set[UserId] = set()
            for row in room.events:
                if row.type == _MEMBER and row.state_key == row.sender and not after_timeline:
                    if row.sender not in needed:
                        told.add(row.sender)
                else:
                    needed.add(row.sender)
            needed.update(room.heroes or ())
            if room.is_fresh or self._request.full_state:
                needed.add(self._user_id)
            if needed - told:
                wanted[room_id] = (room.end if after_timeline else room.start, needed - told)
            self._seen = with_members(self._seen, room_id, needed | told)
        for room_id, members in (await sync_reads.list_members_at(self._tx, wanted)).items():
            for user_id, row in members.items():
                self._rooms[room_id].state.setdefault((_MEMBER, user_id), row)

    async def _render(self) -> tuple[dict[RoomId, Json], dict[RoomId, Json]]:
        joined = {room_id: room for room_id, room in self._rooms.items() if not room.planned.is_left}
        receipts = await sync_reads.list_receipts(self._tx, {room_id: room.floor for room_id, room in joined.items()})
        names = await self._own_names(joined)
        self._unread = unread = await count_unread(
            self._tx,
            self._user_id,
            list(joined),
            self._view.points,
            self._view.evaluator,
            names,
            self._view.ignored,
        )
        bundles = await self._bundles()
        join: dict[RoomId, Json] = {}
        leave: dict[RoomId, Json] = {}
        by_thread = self._request.filter.unread_thread_notifications
        for room_id, room in self._rooms.items():
            section = self._section(room, bundles)
            if room.planned.is_left:
                leave[room_id] = section
                continue
            event = receipt_event(receipts.get(room_id, ()), self._view.ignored)
            section["ephemeral"] = {"events": [event] if event is not None and self._wants_receipts(room_id) else []}
            section["account_data"] = {"events": []}
            if room.with_summary:
                section["summary"] = _summary(room)
            section.update(unread_fields(unread[room_id], by_thread=by_thread))
            if self._has_news(room_id, room, section):
                join[room_id] = section
        return join, leave

    async def _bundles(self) -> dict[RoomId, dict[EventId, Bundle]]:
        """Aggregated relations, for timelines that do not just continue. Spec: §Aggregations of child events."""
        events = {
            room_id: (room.up_to, [row.event_id for row in room.events if row.state_key is None])
            for room_id, room in self._rooms.items()
            if room.events and (room.limited or room.is_fresh)
        }
        return await list_room_bundles(self._tx, events, self._user_id, self._view.ignored) if events else {}

    def _section(self, room: _Room, bundles: Mapping[RoomId, dict[EventId, Bundle]]) -> Json:
        room_id = room.row.room_id
        request = self._request
        reader = Reader(self._user_id, request.device_id, self._now_ms, room.history)
        renderer = EventRenderer(request.filter, reader, room.row.room_version)
        wanted = request.filter.room.state
        state = room.state.values()
        kept = state if wanted.allows_everything else [row for row in state if _allows(wanted, room_id, row)]
        events, found = room.events, bundles.get(room_id, {})
        drop_unseen(found, room.history)
        if self._view.erased and (room.is_fresh or room.planned.is_left):
            rules = ROOM_VERSIONS[room.row.room_version]
            events, found = hide_erased(room_id, rules, events, found, room.history, self._view.erased)
        return {
            "timeline": {
                "events": renderer.timeline(events, found),
                "limited": room.limited,
                "prev_batch": encode_page_token(room.start),
            },
            "state_after" if request.use_state_after else "state": {"events": renderer.state(kept)},
        }

    def _has_news(self, room_id: RoomId, room: _Room, section: Json) -> bool:
        if room.is_fresh or self._request.full_state or room_id in self._recount:
            return True
        state = section["state_after" if self._request.use_state_after else "state"]
        return bool(
            section["timeline"]["events"]
            or room.limited
            or state["events"]
            or section["ephemeral"]["events"]
            or room.with_summary
        )

    def _wants_receipts(self, room_id: RoomId) -> bool:
        wanted = self._request.filter.room.ephemeral
        return wanted.allows_everything or (wanted.allows_room(room_id) and wanted.allows("m.receipt", None))

    async def _own_names(self, joined: Mapping[RoomId, _Room]) -> dict[RoomId, str]:
        if self._view.evaluator is None or not joined:
            return {}
        own = {room_id: (room.end, [self._user_id]) for room_id, room in joined.items()}
        members = await sync_reads.list_members_at(self._tx, own)
        names = {room_id: display_name_of(rows[self._user_id].pdu) for room_id, rows in members.items()}
        return {room_id: name for room_id, name in names.items() if name is not None}

    async def _find_moves(self) -> tuple[set[UserId], set[UserId]]:
        """Users who came to share a room with the reader or may share none any longer."""
        if self._request.since is None:
            return set(), set()
        stays = {
            room_id: room.floor
            for room_id, room in self._rooms.items()
            if not room.is_fresh and not room.planned.is_left and room.row.members_changed
        }
        came, went = await sync_reads.list_moved_members(self._tx, stays) if stays else (set[UserId](), set[UserId]())
        entered = [room_id for room_id, room in self._rooms.items() if room.planned.is_new and not room.planned.is_left]
        left = [
            room_id for room_id, room in self._rooms.items() if room.planned.is_left and not room.planned.only_own_leave
        ]
        if entered:
            came |= await sync_reads.list_joined_users(self._tx, entered)
        if left:
            went |= await sync_reads.list_joined_users(self._tx, left)
        return came, went


def _begin_above_misleading(room: _Room) -> bool:
    """Let the timeline begin where its state events are those of the room's state; False if it does already."""
    newest = {(row.type, row.state_key): at for at, row in enumerate(room.events) if row.state_key is not None}
    misleading = [
        at for key, at in newest.items() if room.changed.get((key[0], key[1] or "")) != room.events[at].event_id
    ]
    if not misleading:
        return False
    room.events = room.events[max(misleading) + 1 :]
    room.limited = True
    return True


def _allows(wanted: RoomEventFilter, room_id: RoomId, row: EventRow) -> bool:
    content = orjson.loads(row.pdu)["content"] if wanted.contains_url is not None else {}
    return wanted.allows_event(row.type, row.sender, room_id, content)


def _summary(room: _Room) -> Json:
    summary: Json = {
        "m.joined_member_count": room.row.joined_count,
        "m.invited_member_count": room.row.invited_count,
    }
    if room.heroes is not None:
        summary["m.heroes"] = room.heroes
    return summary
