"""A sync answer from memory: what a wake costs when a client waits or has just been here.

Nothing is asked of PostgreSQL for what the tails, the user's state and the boards hold. Whatever is out of the
ordinary (a membership that changed, a limited timeline over state without events, another process's token) is
left to the snapshot.

Spec: C-S API §Syncing; DESIGN.md section 5.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from services.sync.lazy_members import Seen, with_members
from services.sync.rendering import (
    Json,
    presence_event,
    receipt_event,
    shape_event,
    to_device_event,
    typing_event,
    unread_fields,
)
from services.sync.room_tails import MAX_MEMBERS, RoomTail
from services.sync.snapshot import MAX_TO_DEVICE, Snapshots, SyncAnswer, empty_section
from services.sync.sync_request import SyncRequest
from services.sync.user_states import UserState
from tessera.event_serving import Reader, close_form, serve_live_event
from tessera.pagination_token import encode_page_token, point_before
from tessera.records import EventBody, LogRecord, OrderKey, Receipt, ReceiptsBody, RecordKind
from tessera.storage import read_positions, sync_accounts, sync_reads, sync_unread
from tessera.storage.presence import Presence
from tessera.storage.sync_accounts import DeviceKeyCounts
from tessera.storage.to_device import StoredMessage
from tessera.storage.user_log import UserLogKind, UserLogRow
from tessera.sync_token import Point, SyncToken
from tessera.unread import Count, RoomUnread, count_unread, push_room, read_points

_MEMBER = "m.room.member"
_NAMING = ("m.room.name", "m.room.canonical_alias")
_SILENT_ENTRIES = frozenset((UserLogKind.TO_DEVICE, UserLogKind.ONE_TIME_KEYS, UserLogKind.SESSION_ENDED))
_RECOUNTING = frozenset((RecordKind.REDACTION_APPLIED, RecordKind.PURGED))  # after these fewer events may count
_PLAIN_KINDS = frozenset((RecordKind.EVENT, RecordKind.RECEIPTS, RecordKind.REDACTION_APPLIED, RecordKind.DEVICE_LISTS))


@dataclass(slots=True)
class _LiveRoom:
    """What is new of one room."""

    tail: RoomTail
    up_to: int
    events: list[tuple[int, EventBody]] = field(default_factory=list)  # of the timeline
    skipped: list[EventBody] = field(default_factory=list)  # state above the timeline's beginning
    receipts: list[Receipt] = field(default_factory=list)
    limited: bool = False
    members: list[EventBody] = field(default_factory=list)  # all member events, shown or not
    is_renamed: bool = False
    is_recounted: bool = False


class LiveAnswers:
    """Composes answers from the states and tails."""

    def __init__(self, snapshots: Snapshots, heads: dict[int, Point], devices_head: "DevicesHead") -> None:
        self._snapshots = snapshots
        self._heads = heads
        self._devices = devices_head

    def is_quiet(self, state: UserState, since: SyncToken) -> bool:
        """Whether nothing at all has happened since a token: then there is no answer to look for.

        False says nothing; it is so as soon as a partition of the user's has moved.
        """
        if (
            since.instance != self._snapshots.instance
            or since.user != state.log_head
            or since.to_device < state.log_head
            or since.devices < self._devices.head
            or since.typing != self._snapshots.typing.count
            or since.presence != self._snapshots.presence.count
        ):
            return False
        positions, heads = since.positions, self._heads
        return all(positions.get(partition) == heads[partition] for partition in state.partitions)

    async def compose(
        self, state: UserState, request: SyncRequest, changed: Iterable[RoomTail] | None
    ) -> SyncAnswer | None:
        """The answer to a request, or None if it cannot be made from memory.

        Args:
            changed: the rooms in which anything can have happened since the token; None for all.
        """
        since = request.since
        if since is None or request.full_state or not _is_plain(request) or since.instance != self._snapshots.instance:
            return None
        entries = state.entries_after(since.user)
        if entries is None or any(entry.kind not in _SILENT_ENTRIES for entry in entries):
            return None
        if since.devices < state.device_floor or since.presence < state.presence_floor:
            return None
        positions = self._positions(state, since)
        if positions is None:
            return None
        rooms = self._changed_rooms(state, request, changed)
        if rooms is None:
            return None
        # Everything that this answer covers is fixed here, before anything is waited for.
        covered = SyncToken(
            positions,
            max(state.log_head, since.user),
            since.to_device,
            max(since.devices, self._devices.head),
            since.instance,
            self._snapshots.typing.count,
            max(since.presence, self._devices.presence),
        )
        return await self._build(state, request, since, rooms, entries, covered)

    def _positions(self, state: UserState, since: SyncToken) -> dict[int, Point] | None:
        positions: dict[int, Point] = {}
        for partition in state.partitions:
            known, head = since.positions.get(partition), self._heads[partition]
            if known is None or known.incarnation != head.incarnation:
                return None
            positions[partition] = head if head > known else known
        return positions

    def _changed_rooms(
        self, state: UserState, request: SyncRequest, changed: Iterable[RoomTail] | None
    ) -> list[_LiveRoom] | None:
        assert request.since is not None
        rooms: list[_LiveRoom] = []
        wanted = request.filter.room
        for tail in state.joined.values() if changed is None else changed:
            position = request.since.positions[tail.partition].position if state in tail.users else tail.last
            if tail.last <= position or not wanted.allows_room(tail.room_id):
                continue
            if position < tail.floor:
                return None
            room = _LiveRoom(tail, min(tail.last, state.cuts.get(tail.room_id, tail.last)))
            if not self._sort(state, request, room, tail.after(position)):
                return None
            rooms.append(room)
        return rooms

    def _sort(self, state: UserState, request: SyncRequest, room: _LiveRoom, records: Sequence[LogRecord]) -> bool:
        """Sort records into the room's parts; False if they need the snapshot."""
        wanted = request.filter.room.timeline
        is_everything = wanted.allows_everything
        hidden: list[EventBody] = []
        for record in records:
            if record.position > room.up_to:
                break
            if record.kind not in _PLAIN_KINDS:
                return False
            body = record.body
            if isinstance(body, ReceiptsBody):
                room.receipts += [one for one in body.receipts if one.user_id not in state.ignored]
            elif isinstance(body, EventBody):
                if body.redacted or body.forked:
                    return False
                is_shown = is_everything or wanted.allows_event(body.type, body.sender, room.tail.room_id, {})
                if body.state_key is not None:
                    if body.type == _MEMBER:
                        room.members.append(body)
                    room.is_renamed |= body.type in _NAMING
                    if not is_shown:
                        hidden.append(body)
                elif body.sender in state.ignored:
                    is_shown = False
                if is_shown:
                    room.events.append((record.position, body))
            elif record.kind is RecordKind.REDACTION_APPLIED:
                room.is_recounted = True
        limit = request.timeline_limit
        if len(room.events) > limit:
            cut = len(room.events) - limit
            room.skipped = [body for _, body in room.events[:cut] if body.state_key is not None]
            room.events = room.events[cut:]
            room.limited = True
        if hidden and (room.skipped or request.use_state_after):
            return False  # the order of the hidden and the skipped is the snapshot's affair
        room.skipped += hidden
        return True

    async def _build(
        self,
        state: UserState,
        request: SyncRequest,
        since: SyncToken,
        rooms: Sequence[_LiveRoom],
        entries: Sequence[UserLogRow],
        covered: SyncToken,
    ) -> SyncAnswer:
        snapshots = self._snapshots
        now_ms = snapshots.clock.now_ms()
        memory = snapshots.memory.at(request.user_id, request.device_id, request.since_text)
        join: dict[RoomId, Json] = {}
        reader = Reader(request.user_id, request.device_id, now_ms)
        is_lazy = request.filter.lazy_load_members
        for room in rooms:
            room_id = room.tail.room_id
            section = self._section(request, room, reader)
            if is_lazy and (needed := _needed_members(request, room, memory.get(room_id, frozenset()))):
                members = await self.members(room.tail, needed)
                state_key = "state_after" if request.use_state_after else "state"
                section[state_key]["events"] += [
                    orjson.Fragment(shape_event(request.filter, close_form(form, None, ())))
                    for form in members.values()
                    if form is not None
                ]
            if is_lazy:
                memory = with_members(memory, room_id, {body.sender for _, body in room.events})
            if room.members or room.is_renamed:
                section["summary"] = await self._summary(state, room)
            if room.events or room.limited or room.is_recounted or section_has_news(section):
                unread = await self.unread(state, room.tail)
                section.update(unread_fields(unread, by_thread=request.filter.unread_thread_notifications))
                join[room_id] = section
        self._add_typing(state, request, since, join)
        body: Json = {}
        if join:
            body["rooms"] = {"join": join}
        if presence := self._presence(state, request, since, covered, now_ms):
            body["presence"] = {"events": presence}
        changed_devices, left = await self._device_lists(state, request, since, covered, rooms)
        if changed_devices or left:
            body["device_lists"] = {"changed": sorted(changed_devices), "left": sorted(left)}
        return await self._finish(state, request, body, entries, covered, memory)

    async def _finish(
        self,
        state: UserState,
        request: SyncRequest,
        body: Json,
        entries: Sequence[UserLogRow],
        covered: SyncToken,
        memory: Seen,
    ) -> SyncAnswer:
        """Messages to the device last, so that no event is shown before its key."""
        device_id = request.device_id
        messages, counts = await self.device_news(state, device_id, covered.to_device)
        if messages:
            body["to_device"] = {"events": [to_device_event(message) for message in messages]}
        has_keys = any(entry.kind == UserLogKind.ONE_TIME_KEYS and entry.key == device_id for entry in entries)
        is_empty = not body and not has_keys
        body["device_one_time_keys_count"] = {"signed_curve25519": 0, **counts.one_time}
        body["device_unused_fallback_key_types"] = counts.unused_fallback
        to_device = covered.user
        if messages:
            newest = messages[-1].position
            to_device = newest if len(messages) >= MAX_TO_DEVICE else max(newest, covered.user)
        token = SyncToken(
            covered.positions,
            covered.user,
            max(covered.to_device, to_device),
            covered.devices,
            covered.instance,
            covered.typing,
            covered.presence,
        )
        return SyncAnswer(body, token, is_empty, memory)

    def _section(self, request: SyncRequest, room: _LiveRoom, reader: Reader) -> Json:
        section = empty_section(request)
        events = []
        is_shaped = request.filter.event_fields is not None
        for _, body in room.events:
            served = serve_live_event(body, reader, membership="join")
            events.append(orjson.Fragment(shape_event(request.filter, served) if is_shaped else served))
        first = room.events[0][0] if room.events else None
        start = point_before(OrderKey(first)) if first is not None else OrderKey(room.up_to)
        section["timeline"] = {"events": events, "limited": room.limited, "prev_batch": encode_page_token(start)}
        changes = room.skipped
        if request.use_state_after:
            changes = [*room.skipped, *(body for _, body in room.events if body.state_key is not None)]
        if changes:
            wanted = request.filter.room.state
            newest = {(body.type, body.state_key): body for body in changes}
            told = set() if request.use_state_after else {body.event_id for _, body in room.events}
            section["state_after" if request.use_state_after else "state"]["events"] = [
                orjson.Fragment(shape_event(request.filter, close_form(body.client, None, ())))
                for body in newest.values()
                if body.event_id not in told and wanted.allows_event(body.type, body.sender, room.tail.room_id, {})
            ]
        ephemeral = request.filter.room.ephemeral
        if room.receipts and ephemeral.allows_room(room.tail.room_id) and ephemeral.allows("m.receipt", None):
            event = receipt_event(room.receipts)
            if event is not None:
                section["ephemeral"]["events"].append(event)
        return section

    async def members(self, tail: RoomTail, user_ids: set[UserId]) -> dict[UserId, bytes | None]:
        """Member events in client form; those that the tail lacks are read in one query."""
        known = {user_id: tail.members[user_id] for user_id in user_ids if user_id in tail.members}
        if missing := user_ids - known.keys():
            last = tail.last
            found = await self._snapshots.read_member_forms(tail.room_id, missing)
            # What was read before the newest record is not kept beyond it.
            if tail.last == last and len(tail.members) < MAX_MEMBERS:
                tail.members.update(found)
            known |= found
        return {user_id: known.get(user_id) for user_id in user_ids}

    async def _summary(self, state: UserState, room: _LiveRoom) -> Json:
        summary: Json = {}
        if room.members:
            newest = room.members[-1]
            summary["m.joined_member_count"] = newest.joined_count
            summary["m.invited_member_count"] = newest.invited_count
        tail = room.tail
        if (heroes := tail.heroes) is None:
            last = tail.last
            heroes = await self._snapshots.read_heroes(tail.room_id)
            if tail.last == last:  # else a member may have come or gone since
                tail.heroes = heroes
        if heroes:
            others = [user_id for user_id in heroes if user_id != state.user_id]
            summary["m.heroes"] = others[: sync_reads.HERO_COUNT]
        return summary

    async def unread(self, state: UserState, tail: RoomTail) -> RoomUnread:
        """The room's counts: those that are known with what came since, or counted anew."""
        known = state.unread.get(tail.room_id)
        if known is not None and known[0] >= tail.floor and (counts := _advanced(state, tail, known)) is not None:
            state.unread[tail.room_id] = (max(known[0], tail.last), counts)
            return counts
        head, log_head = tail.last, state.log_head
        counts, position = await self._count(state, tail.room_id)
        # What was counted before it was heard of would be counted again when it is.
        if state.log_head == log_head and tail.last == head == position:
            state.unread[tail.room_id] = (head, counts)
        return counts

    async def _count(self, state: UserState, room_id: RoomId) -> tuple[RoomUnread, int]:
        """The counts, and a position above which none of the room's records was counted."""
        snapshots = self._snapshots
        async with snapshots.accounts.reading() as accounts:
            points = read_points(await read_positions.list_of_room(accounts, state.user_id, room_id))
        async with snapshots.shards.of_room(room_id).reading() as tx:
            counted = await count_unread(tx, state.user_id, [room_id], points, state.evaluator, None, state.ignored)
            position = await sync_unread.get_last_position(tx, room_id)
        return counted[room_id], position

    def _add_typing(self, state: UserState, request: SyncRequest, since: SyncToken, join: dict[RoomId, Json]) -> None:
        board = self._snapshots.typing
        if board.count == since.typing:
            return
        wanted = request.filter.room.ephemeral
        if not wanted.allows("m.typing", None):
            return
        for room_id, users in board.changed_since(since.typing, state.joined).items():
            if wanted.allows_room(room_id) and request.filter.room.allows_room(room_id) and room_id not in state.cuts:
                typists = [user_id for user_id in users if user_id not in state.ignored]
                section = join.setdefault(room_id, empty_section(request))
                section["ephemeral"]["events"].append(typing_event(typists))

    def _presence(
        self, state: UserState, request: SyncRequest, since: SyncToken, covered: SyncToken, now_ms: int
    ) -> list[Json]:
        if not state.presence_news:
            return []
        newest: dict[UserId, Presence] = {
            presence.user_id: presence
            for count, presence in state.presence_news
            if since.presence < count <= covered.presence
        }
        wanted = request.filter.presence
        return [presence_event(one, now_ms) for one in newest.values() if wanted.allows("m.presence", one.user_id)]

    async def _device_lists(
        self,
        state: UserState,
        request: SyncRequest,
        since: SyncToken,
        covered: SyncToken,
        rooms: Sequence[_LiveRoom],
    ) -> tuple[set[UserId], set[UserId]]:
        changed = {user_id for position, user_id in state.device_news if since.devices < position <= covered.devices}
        went: set[UserId] = set()
        for room in rooms:
            for body in room.members:
                was_joined = (
                    body.prev_content is not None and orjson.loads(body.prev_content).get("membership") == "join"
                )
                is_joined = body.membership == "join"
                if is_joined != was_joined and body.state_key != state.user_id:
                    (changed if is_joined else went).add(UserId(body.state_key or ""))
        if not went:
            return changed, set()
        _, left = await self._snapshots.find_device_lists(
            state.user_id, covered.devices, covered.devices, list(state.joined), (), went
        )
        return changed - left, left

    async def device_news(
        self, state: UserState, device_id: str, after: int, limit: int = MAX_TO_DEVICE
    ) -> tuple[list[StoredMessage], DeviceKeyCounts]:
        """The device's oldest messages above a position, at most `limit`, and what is left of its keys."""
        counts = state.key_counts.get(device_id)
        entries = state.entries_after(after)
        has_messages = entries is None or any(
            entry.kind == UserLogKind.TO_DEVICE and entry.key == device_id for entry in entries
        )
        if counts is not None and not has_messages:
            return [], counts
        head = state.log_head
        async with self._snapshots.accounts.reading() as tx:
            messages, counts = await sync_accounts.find_device_news(tx, state.user_id, device_id, after, limit)
        if state.log_head == head:
            state.key_counts[device_id] = counts
        return messages, counts


@dataclass(slots=True)
class DevicesHead:
    """How far device changes and presences are told to the states: what is being gathered no answer covers yet."""

    head: int = 0
    presence: int = 0


def section_has_news(section: Json) -> bool:
    """Whether a room's section says anything beside its counts."""
    state = section.get("state") or section.get("state_after") or {}
    return bool(section["ephemeral"]["events"] or state.get("events") or section.get("summary"))


def _is_plain(request: SyncRequest) -> bool:
    """Whether the filter can be judged without contents and relations."""
    wanted = request.filter.room
    return (
        not request.filter.federation_format
        and not wanted.timeline.needs_relations
        and wanted.timeline.contains_url is None
        and wanted.state.contains_url is None
    )


def _needed_members(request: SyncRequest, room: _LiveRoom, known: frozenset[UserId]) -> set[UserId]:
    """Senders whose member events the client needs and does not get with the timeline."""
    if request.filter.room.state.include_redundant_members:
        known = frozenset()
    told = set(known)
    told.update(UserId(body.state_key or "") for body in room.skipped if body.type == _MEMBER)
    needed: set[UserId] = set()
    for _, body in room.events:
        if body.type == _MEMBER and body.state_key == body.sender:
            told.add(body.sender)
        elif body.sender not in told:
            needed.add(body.sender)
    return needed


def _advanced(state: UserState, tail: RoomTail, known: tuple[int, RoomUnread]) -> RoomUnread | None:
    """Counts brought up to the tail's end; None if what a record changed cannot be told."""
    position, before = known
    main, threads = before.main, dict(before.threads)
    for record in tail.after(position):
        if record.kind in _RECOUNTING:
            return None
        if not isinstance(record.body, EventBody):
            continue
        body = record.body
        thread = body.thread_root
        if body.sender == state.user_id:
            if thread is None:
                main = Count()
            else:
                threads.pop(thread, None)
            continue
        one = _count_of(state, tail, record.position, body)
        if one is None:
            return None
        if not one.notify and not one.highlight:
            continue
        if thread is None:
            main += one
        else:
            threads[EventId(thread)] = threads.get(thread, Count()) + one
    return RoomUnread(main, threads)


def _count_of(state: UserState, tail: RoomTail, position: int, body: EventBody) -> Count | None:
    increment = tail.increments.get(position)
    if increment is None:
        return None
    notify, highlight = increment
    if state.evaluator is None:
        if state.user_id in body.mentions:
            return Count(max(1, notify), max(1, highlight))
        return Count(notify, highlight)
    if body.sender in state.ignored:
        return Count()
    event = {**orjson.loads(body.client + b"}"), "room_id": tail.room_id}
    outcome = state.evaluator.evaluate(event, push_room(body.joined_count, room_mention=highlight > 0))
    return Count(1, int(outcome.highlight)) if outcome.notify else Count()
