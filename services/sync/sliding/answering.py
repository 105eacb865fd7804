"""One answer of sliding sync.

Messages to the device are read last, so that no event is shown before its key.

Spec: MSC4186; DESIGN.md section 5.
"""

import asyncio
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from matrixcore.identifiers import RoomId, UserId
from services.sync.lazy_members import Seen, with_members
from services.sync.rendering import Json, to_device_event
from services.sync.room_plan import JOIN
from services.sync.room_sections import UserView
from services.sync.sliding import live_rooms
from services.sync.sliding.covering import Covered, Covering
from services.sync.sliding.device_lists import list_device_changes
from services.sync.sliding.extensions import (
    RoomNews,
    list_account_data,
    list_receipts,
    list_typing,
    recounted_rooms,
)
from services.sync.sliding.live_rooms import LiveRooms
from services.sync.sliding.parsing import format_to_device_token
from services.sync.sliding.request import MAX_TO_DEVICE, Form, SlidingRequest
from services.sync.sliding.room_plan import RoomsPlan, RoomTask, pass_over_quiet, plan_rooms, sent_after
from services.sync.sliding.room_reading import ReadRoom, ShardRooms
from services.sync.sliding.room_rendering import preview_room, room_fields, told_room
from services.sync.sliding.sent_rooms import Sent, SentRoom, Told
from services.sync.sliding.windows import Windows, match_rooms, named_spaces
from services.sync.sync_instance import SyncInstance
from services.sync.user_states import UserState
from tessera.event_serving import Reader
from tessera.storage import read_positions, sync_accounts
from tessera.storage.user_log import UserLogKind
from tessera.sync_token import SyncToken
from tessera.unread import ReadPoints, read_points


@dataclass(slots=True)
class SlidingAnswer:
    """An answer without its `pos`.

    Attributes:
        sent: what the client has been told with it, `seen` which members.
        is_empty: nothing is new, so that a client that waits goes on waiting.
    """

    body: Json
    token: SyncToken
    sent: Sent
    seen: Seen
    is_empty: bool


@dataclass(slots=True)
class _Extensions:
    """What extensions say."""

    body: Json = field(default_factory=dict)
    has_news: bool = False
    data: RoomNews = field(default_factory=RoomNews)
    receipts: RoomNews = field(default_factory=RoomNews)

    def add(self, name: str, section: Json) -> None:
        """An extension's part of the answer, if it has anything to say."""
        if section:
            self.body[name] = section
            self.has_news = True


class SlidingAnswers:
    """Composes answers from what the process knows of its users, and from the stores."""

    def __init__(self, instance: SyncInstance) -> None:
        self._instance = instance
        self._snapshots = instance.snapshots
        self._accounts = instance.snapshots.accounts
        self._shards = instance.snapshots.shards
        self._covering = Covering(instance)
        self._live = LiveRooms(instance.live)

    def is_quiet(self, state: UserState, since: SyncToken) -> bool:
        """Whether nothing at all has happened since a token."""
        return self._covering.is_quiet(state, since)

    async def compose(self, state: UserState, request: SlidingRequest, told: Told, seen: Seen) -> SlidingAnswer:
        """What is new to a connection that was told `told`.

        Raises:
            UnknownPos: it was told what is not so any longer, or more than this server has now.
            DatabaseUnavailable
        """
        covered = await self._covering.cover(state, told, named_spaces(request))
        token = covered.token(self._snapshots.instance)
        windows = match_rooms(request, covered.rooms, state, told.rooms, covered.children)
        is_counted = request.form is Form.EXPERIMENTAL  # the accepted form has no counts
        recounted = recounted_rooms(state, covered.entries) if is_counted else frozenset[RoomId]()
        touched = {RoomId(entry.room_id) for entry in covered.entries if entry.room_id}
        pass_over_quiet(windows, told, request.extensions, touched, recounted)
        plan = plan_rooms(windows, told, covered.positions, recounted, state.cuts, self._shards)
        rooms, seen = await self._tell_live(state, request, plan, seen)
        read, seen, view = await self._read_rooms(state, request, plan, covered, seen)
        rooms |= self._render(request, plan, read, view)
        for task in plan.tasks:
            if task.room_id not in rooms and task.room_id not in read:
                # The client is told of it when it is here again.
                windows.rooms.pop(task.room_id, None)
                windows.active.pop(task.room_id, None)
        news = await self._room_extensions(state, request, told, windows, covered, read)
        await self._device_extensions(state, request, told, token, covered, news)
        updates = _sent_rooms(windows, told, read, news)
        sent = sent_after(windows, told, updates, state.joined, touched, self._shards)
        lists = {name: {"count": count} for name, count in windows.counts.items()}
        body: Json = {"lists": lists, "rooms": rooms, "extensions": news.body}
        # A client for which rooms were read gets what it has now, so that they are not read again at its next wake.
        return SlidingAnswer(body, token, sent, seen, not rooms and not read and not news.has_news)

    async def _tell_live(
        self, state: UserState, request: SlidingRequest, plan: RoomsPlan, seen: Seen
    ) -> tuple[dict[RoomId, Json], Seen]:
        """Tell what rooms can be told from memory, and take them out of the plan."""
        rooms: dict[RoomId, Json] = {}
        if len(plan.tasks) > live_rooms.MAX_ROOMS:
            return rooms, seen
        now_ms = self._snapshots.clock.now_ms()
        left = []
        for task in plan.tasks:
            told = await self._live.tell(state, request, task, seen, now_ms)
            if told is None:
                left.append(task)
            else:
                rooms[task.room_id], seen = told
        plan.tasks = left
        return rooms, seen

    async def _read_rooms(
        self, state: UserState, request: SlidingRequest, plan: RoomsPlan, covered: Covered, seen: Seen
    ) -> tuple[dict[RoomId, ReadRoom], Seen, UserView]:
        if not plan.tasks:
            return {}, seen, UserView()
        view = await self._view(state, plan.tasks, request.form)
        groups: dict[str, list[RoomTask]] = {}
        for task in plan.tasks:
            groups.setdefault(self._shards.shard_of(task.partition), []).append(task)

        async def read(shard: str, tasks: list[RoomTask]) -> ShardRooms:
            async with self._shards.databases[shard].snapshot() as tx:
                reader = ShardRooms(
                    tx,
                    state.user_id,
                    view,
                    covered.positions,
                    seen,
                    with_counts=request.form is Form.EXPERIMENTAL,
                    with_gone=request.form is Form.ACCEPTED,
                )
                await reader.read(tasks)
            return reader

        found: dict[RoomId, ReadRoom] = {}
        merged = seen
        for reader in await asyncio.gather(*(read(shard, tasks) for shard, tasks in groups.items())):
            found |= reader.rooms
            for room_id in reader.rooms:
                merged = with_members(merged, room_id, reader.seen.get(room_id, ()))
        return found, merged, view

    async def _view(self, state: UserState, tasks: Sequence[RoomTask], form: Form) -> UserView:
        reaches_back = any(task.floor < 0 or task.is_expanded or task.is_left for task in tasks)
        points: Mapping[RoomId, ReadPoints] = {}
        erased: Set[UserId] = frozenset()
        async with self._accounts.reading() as tx:
            if form is Form.EXPERIMENTAL:
                rooms = [task.room_id for task in tasks]
                points = read_points(await read_positions.list_of_rooms(tx, state.user_id, rooms))
            overview = await sync_accounts.find_overview(tx, state.user_id) if reaches_back else None
        if overview is not None:
            erased = await self._snapshots.erased.up_to(self._accounts, overview.erasures_head)
        return UserView(state.ignored, points, state.evaluator, erased)

    def _render(
        self, request: SlidingRequest, plan: RoomsPlan, read: Mapping[RoomId, ReadRoom], view: UserView
    ) -> dict[RoomId, Json]:
        now_ms = self._snapshots.clock.now_ms()
        rooms = {wanted.room.room_id: preview_room(request.form, wanted) for wanted in plan.previews}
        for task in plan.tasks:
            room = read.get(task.room_id)
            if room is None:
                if task.is_left:  # this server has nothing of it but the membership
                    rooms[task.room_id] = {"initial": True, **room_fields(task.wanted)}
                continue
            if room.is_quiet:
                continue
            reader = Reader(request.user_id, request.device_id, now_ms, room.history)
            rooms[task.room_id] = told_room(request.form, room, reader, view.erased)
        return rooms

    async def _room_extensions(
        self,
        state: UserState,
        request: SlidingRequest,
        told: Told,
        windows: Windows,
        covered: Covered,
        read: Mapping[RoomId, ReadRoom],
    ) -> _Extensions:
        wishes, news = request.extensions, _Extensions()
        if wishes.account_data is not None:
            whole, news.data = await list_account_data(
                self._accounts, state, told, windows, wishes.account_data, covered.entries
            )
            news.add("account_data", {**whole, **_in_rooms(news.data)})
        if wishes.receipts is not None:
            timelines = {room_id: {row.event_id for row in room.events} for room_id, room in read.items()}
            news.receipts = await list_receipts(
                self._accounts,
                self._shards,
                state,
                told,
                windows,
                wishes.receipts,
                covered.entries,
                covered.positions,
                timelines,
            )
            news.add("receipts", _in_rooms(news.receipts))
        if wishes.typing is not None:
            typing = list_typing(self._snapshots.typing, self._snapshots.instance, state, told, windows, wishes.typing)
            news.add("typing", _in_rooms(typing))
        return news

    async def _device_extensions(
        self,
        state: UserState,
        request: SlidingRequest,
        told: Told,
        token: SyncToken,
        covered: Covered,
        news: _Extensions,
    ) -> None:
        wishes = request.extensions
        if wishes.to_device is None and not wishes.e2ee:
            return
        changes: Json = {}
        if wishes.e2ee and told.token is not None:
            changed, left = await list_device_changes(self._snapshots, state, told.token, token, covered.entries)
            if changed or left:
                changes = {"device_lists": {"changed": sorted(changed), "left": sorted(left)}}
        since = 0 if wishes.to_device is None or wishes.to_device.since > state.log_head else wishes.to_device.since
        head = state.log_head
        limit = MAX_TO_DEVICE if wishes.to_device is None else wishes.to_device.limit
        after = head if wishes.to_device is None else since
        messages, counts = await self._instance.live.device_news(state, request.device_id, after, limit)
        if wishes.to_device is not None:
            newest = messages[-1].position if messages else since
            position = newest if len(messages) >= limit else max(newest, head)
            news.body["to_device"] = {
                "next_batch": format_to_device_token(position),
                "events": [to_device_event(message) for message in messages],
            }
            news.has_news |= bool(messages)
        if wishes.e2ee:
            keys = UserLogKind.ONE_TIME_KEYS
            has_keys = any(entry.kind == keys and entry.key == request.device_id for entry in covered.entries)
            news.body["e2ee"] = {
                **changes,
                "device_one_time_keys_count": {"signed_curve25519": 0, **counts.one_time},
                "device_unused_fallback_key_types": counts.unused_fallback,
            }
            news.has_news |= bool(changes) or has_keys


def _in_rooms(news: RoomNews) -> Json:
    return {"rooms": news.found} if news.found else {}


def _sent_rooms(
    windows: Windows, told: Told, read: Mapping[RoomId, ReadRoom], news: _Extensions
) -> dict[RoomId, SentRoom]:
    """What the client knows of rooms that the request matches once it has the answer, where that may have changed."""
    updates: dict[RoomId, SentRoom] = {}
    for room_id, wanted in windows.active.items():
        room, before = wanted.room, told.rooms.get(room_id)
        if not room.is_joined:
            updates[room_id] = SentRoom(room.membership, room.position)
            continue
        limit = wanted.timeline_limit
        if before is not None and before.membership == JOIN:
            was_read = read.get(room_id)
            has_gap = was_read is not None and (was_read.is_fresh or was_read.limited)
            limit = limit if has_gap else max(limit, before.timeline_limit)
        updates[room_id] = SentRoom(
            JOIN,
            room.position,
            None,
            limit,
            wanted.required_state,
            wanted.is_dm,
            room_id in news.data.rooms,
            room_id in news.receipts.rooms,
        )
    return updates
