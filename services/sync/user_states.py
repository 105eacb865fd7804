"""The users whose clients ask this process: their rooms, settings and the newest entries of their logs.

A state is loaded once and then follows the user's log: a wake, or a comparison of heads, makes it read what is new,
once for all devices. States without waiting requests go, the least used first.

Spec: DESIGN.md section 5.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
import structlog

from matrixcore.identifiers import RoomId, UserId
from matrixcore.push_evaluation import PushEvaluator, compile_ruleset
from matrixcore.push_rules import from_stored_form, merged_ruleset
from services.sync import metrics
from services.sync.partition_feed import PartitionFeed
from services.sync.polls import Poll
from services.sync.room_tails import RoomTail, RoomTails
from services.sync.snapshot import parse_ignored
from tessera.clock import Clock
from tessera.fanout import Subscription, UserWake
from tessera.storage import sync_accounts, sync_reads, user_log, user_rooms
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.presence import Presence
from tessera.storage.shards import RoomShards
from tessera.storage.sync_accounts import DeviceKeyCounts
from tessera.storage.user_log import UserLogKind, UserLogRow
from tessera.unread import RoomUnread, own_evaluator

if TYPE_CHECKING:
    from services.sync.sliding.room_list import RoomList

log = structlog.get_logger(__name__)

MAX_USERS = 20_000
MAX_ENTRIES = 256  # of each user's log
MAX_READ = 1_000  # entries of one log read at once
MAX_NEWS = 256  # of devices, and of presence, kept for each user
MAX_POLLS_PER_USER = 100
RETRY_SECONDS = 1.0

_SETTINGS = frozenset((UserLogKind.PUSH_RULES, UserLogKind.IGNORED_USERS))


@dataclass(slots=True, eq=False)
class UserState:
    """What this process knows of a user.

    Attributes:
        log_head: the log is applied up to here; `entries` has everything above `log_floor`.
        heard_head: the highest position that a wake named.
        joined: rooms by the log, with their tails; `joined_at`: the positions of these joins.
        cuts: rooms that the user has left though the log does not say so yet -> position of the leave.
        evaluator: for users whose push rules or ignored users need each event judged; None for all others.
        unread: room -> (position, counts there).
        device_news: (position, user) of device changes that concern the user, above `device_floor`.
        presence_news: (count, presence) of those around the user, above `presence_floor`.
        confirmed: device -> the to-device position up to which its messages are deleted.
        room_list: for sliding sync; None if no client has asked for it.
    """

    user_id: UserId
    is_loaded: bool = False
    log_head: int = 0
    log_floor: int = 0
    heard_head: int = 0
    entries: deque[UserLogRow] = field(default_factory=deque)
    joined: dict[RoomId, RoomTail] = field(default_factory=dict)
    joined_at: dict[RoomId, int] = field(default_factory=dict)
    partitions: frozenset[int] = frozenset()
    cuts: dict[RoomId, int] = field(default_factory=dict)
    ignored: frozenset[UserId] = frozenset()
    evaluator: PushEvaluator | None = None
    unread: dict[RoomId, tuple[int, RoomUnread]] = field(default_factory=dict)
    key_counts: dict[str, DeviceKeyCounts] = field(default_factory=dict)
    confirmed: dict[str, int] = field(default_factory=dict)
    device_floor: int = 0
    device_news: deque[tuple[int, UserId]] = field(default_factory=deque)
    presence_floor: int = 0
    presence_news: deque[tuple[int, Presence]] = field(default_factory=deque)
    polls: set[Poll] = field(default_factory=set)
    room_list: "RoomList | None" = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def wake(self) -> None:
        """Wake all waiting requests."""
        for poll in self.polls:
            poll.wake()

    def entries_after(self, position: int) -> list[UserLogRow] | None:
        """The entries above a position; None if they are not all here."""
        if position < self.log_floor:
            return None
        return [entry for entry in self.entries if entry.position > position]

    def add_device_news(self, position: int, user_id: UserId) -> None:
        """A device change that concerns the user."""
        self.device_news.append((position, user_id))
        if len(self.device_news) > MAX_NEWS:
            self.device_floor = self.device_news.popleft()[0]

    def add_presence_news(self, count: int, presence: Presence) -> None:
        """Somebody around the user changed presence."""
        self.presence_news.append((count, presence))
        if len(self.presence_news) > MAX_NEWS:
            self.presence_floor = self.presence_news.popleft()[0]


class UserStates:
    """All states, least recently used first."""

    def __init__(
        self,
        accounts: Database,
        shards: RoomShards,
        feed: PartitionFeed,
        tails: RoomTails,
        clock: Clock,
        *,
        max_users: int = MAX_USERS,
    ) -> None:
        self._accounts = accounts
        self._shards = shards
        self._feed = feed
        self._tails = tails
        self._clock = clock
        self._max_users = max_users
        self._states: OrderedDict[UserId, UserState] = OrderedDict()
        self._loading: dict[UserId, asyncio.Lock] = {}
        self._subscription: Subscription | None = None
        self._behind: set[UserState] = set()
        self._is_behind = asyncio.Event()
        self.devices_head = 0
        self.presence_count = 0

    def attach(self, subscription: Subscription) -> None:
        """Use this place on the fan-out; before anything else."""
        self._subscription = subscription

    def __len__(self) -> int:
        return len(self._states)

    def find(self, user_id: UserId) -> UserState | None:
        """The state of a user, if it is here."""
        return self._states.get(user_id)

    def all(self) -> Collection[UserState]:
        """Every state."""
        return self._states.values()

    async def get(self, user_id: UserId) -> UserState:
        """The state of a user, up to everything that was heard of.

        Raises:
            DatabaseUnavailable
        """
        state = self._states.get(user_id)
        if state is None or not state.is_loaded:
            lock = self._loading.setdefault(user_id, asyncio.Lock())
            try:
                async with lock:
                    state = self._states.get(user_id)
                    if state is None or not state.is_loaded:
                        state = await self._load(user_id)
            finally:
                if not lock.locked():
                    self._loading.pop(user_id, None)
        self._states.move_to_end(user_id)
        if state.heard_head > state.log_head:
            await self.catch_up(state)
        return state

    def on_wakes(self, wakes: Sequence[UserWake]) -> None:
        """Logs have moved."""
        for user_wake in wakes:
            state = self._states.get(user_wake.user_id)
            if state is not None and user_wake.position > state.heard_head:
                state.heard_head = user_wake.position
                if state.polls and state.is_loaded:
                    self._fall_behind(state)

    async def compare(self) -> None:
        """Look whether logs have moved without a wake."""
        states = list(self._states.values())
        async with self._accounts.reading() as tx:
            heads = await user_log.list_heads(tx, [state.user_id for state in states])
        self.on_wakes([UserWake(user_id, head) for user_id, head in heads.items()])

    async def run_catching_up(self) -> None:
        """Run for ever: bring the states of waiting users up to their logs."""
        while True:
            await self._is_behind.wait()
            self._is_behind.clear()
            behind, self._behind = self._behind, set()
            try:
                await self._catch_up_all(behind)
            except DatabaseUnavailable:
                log.warning("user logs are not readable now", users=len(behind))
                self._behind |= behind
                self._is_behind.set()
                await self._clock.sleep(RETRY_SECONDS)
            except Exception:  # one user's data must not end everybody's service
                log.exception("user logs not applied", users=len(behind))
                for state in behind:  # each request tries for itself, and says what it meets
                    state.wake()

    async def catch_up(self, state: UserState) -> None:
        """Apply what is new in a user's log.

        Raises:
            DatabaseUnavailable
        """
        async with state.lock:
            while state.heard_head > state.log_head:
                async with self._accounts.reading() as tx:
                    logs = await sync_accounts.list_logs(tx, {state.user_id: state.log_head}, MAX_READ)
                entries = logs[state.user_id]
                if not entries:  # a wake can come from a transaction that a fail-over lost
                    state.heard_head = state.log_head
                    break
                await self._apply(state, entries)

    async def _catch_up_all(self, behind: Collection[UserState]) -> None:
        """One query for everybody; who is being brought up elsewhere is left to that."""
        free = [state for state in behind if not state.lock.locked() and state.heard_head > state.log_head]
        for state in free:
            await state.lock.acquire()
        try:
            async with self._accounts.reading() as tx:
                logs = await sync_accounts.list_logs(tx, {state.user_id: state.log_head for state in free}, MAX_READ)
            for state in free:
                if entries := logs[state.user_id]:
                    await self._apply(state, entries)
                else:
                    state.heard_head = state.log_head
        finally:
            for state in free:
                state.lock.release()
        for state in behind:
            if state.heard_head > state.log_head:
                self._fall_behind(state)

    async def _load(self, user_id: UserId) -> UserState:
        assert self._subscription is not None
        await self._make_room()
        state = UserState(user_id)
        # Followed first: whatever the reads below miss is heard of.
        await self._subscription.follow_users([user_id])
        self._states[user_id] = state
        try:
            async with self._accounts.snapshot() as tx:
                overview = await sync_accounts.find_overview(tx, user_id)
                rooms = await user_rooms.list_rooms(tx, user_id, ["join"])
            state.log_head = state.log_floor = overview.log_head
            state.heard_head = max(state.heard_head, overview.log_head)
            self._take_settings(state, overview)
            await self._enter(state, {room.room_id: room.position for room in rooms})
            # Now that the state is among its rooms' users, it is told everything that comes above.
            state.device_floor, state.presence_floor = self.devices_head, self.presence_count
        except BaseException:
            self._forget(state)
            raise
        state.is_loaded = True
        metrics.USERS.set(len(self._states))
        return state

    def _take_settings(self, state: UserState, overview: sync_accounts.UserOverview) -> None:
        state.ignored = parse_ignored(overview.ignored_list)
        state.evaluator = own_evaluator(state.user_id, overview.push_rules)
        if state.evaluator is None and state.ignored:
            state.evaluator = compile_ruleset(state.user_id, merged_ruleset(state.user_id, from_stored_form({})))

    async def _apply(self, state: UserState, entries: Sequence[UserLogRow]) -> None:
        """Apply entries in order; the state moves only when all that they need is there."""
        kinds = {entry.kind for entry in entries}
        if kinds & _SETTINGS:
            async with self._accounts.reading() as tx:
                self._take_settings(state, await sync_accounts.find_overview(tx, state.user_id))
            state.unread.clear()
        memberships: dict[RoomId, tuple[str, int]] = {}
        for entry in entries:
            if entry.kind == UserLogKind.MEMBERSHIP and entry.body is not None:
                body = orjson.loads(entry.body)
                memberships[RoomId(entry.room_id)] = (body["membership"], body["position"])
        joined = {room_id: position for room_id, (membership, position) in memberships.items() if membership == "join"}
        if joined:
            await self._enter(state, joined)
        for room_id in memberships.keys() - joined.keys():
            self._leave(state, room_id)
        for entry in entries:
            self._note(state, entry)
        state.entries.extend(entries)
        while len(state.entries) > MAX_ENTRIES:
            state.log_floor = state.entries.popleft().position
        state.log_head = entries[-1].position
        state.heard_head = max(state.heard_head, state.log_head)
        state.wake()

    def _note(self, state: UserState, entry: UserLogRow) -> None:
        if entry.kind in (UserLogKind.RECEIPT, UserLogKind.UNREAD, UserLogKind.MEMBERSHIP):
            state.unread.pop(RoomId(entry.room_id), None)
        elif entry.kind == UserLogKind.ONE_TIME_KEYS:
            state.key_counts.pop(entry.key, None)
        elif entry.kind == UserLogKind.SESSION_ENDED:
            state.key_counts.pop(entry.key, None)
            for poll in state.polls:
                if poll.device_id == entry.key:
                    poll.ended = True

    async def _enter(self, state: UserState, joined: Mapping[RoomId, int]) -> None:
        """Follow rooms that the user's log has the user in, from these positions on."""
        partitions = {room_id: self._shards.partition_of(room_id) for room_id in joined}
        await self._feed.follow(set(partitions.values()))
        for room_id, partition in partitions.items():
            tail = self._tails.ensure(room_id, partition, self._feed.heads[partition].position)
            tail.users.add(state)
            state.joined[room_id] = tail
            state.joined_at[room_id] = joined[room_id]
        state.partitions = frozenset(tail.partition for tail in state.joined.values())
        # After the tails began: a leave is either seen here or goes by in the tail.
        for shard, group in self._shards.group_rooms(joined).items():
            async with self._shards.databases[shard].reading() as tx:
                own_rooms = await sync_reads.list_own_rooms(tx, state.user_id, {one: joined[one] for one in group})
            for own in own_rooms:
                tail = state.joined[own.room_id]
                if own.last_position <= tail.floor and not tail.records:
                    tail.counters = (own.notify, own.highlight)
                if own.left_at is not None:
                    state.cuts[own.room_id] = own.left_at
                elif state.cuts.get(own.room_id, 0) < joined[own.room_id]:
                    state.cuts.pop(own.room_id, None)  # of an earlier stay

    def _leave(self, state: UserState, room_id: RoomId) -> None:
        tail = state.joined.pop(room_id, None)
        state.joined_at.pop(room_id, None)
        state.cuts.pop(room_id, None)
        if tail is None:
            return
        tail.users.discard(state)
        if not tail.users:
            self._tails.drop(room_id)
        state.partitions = frozenset(tail.partition for tail in state.joined.values())

    def _fall_behind(self, state: UserState) -> None:
        self._behind.add(state)
        self._is_behind.set()

    async def _make_room(self) -> None:
        if len(self._states) < self._max_users:
            return
        for state in self._states.values():
            if state.is_loaded and not state.polls and not state.lock.locked():
                self._forget(state)
                assert self._subscription is not None
                await self._subscription.unfollow_users([state.user_id])
                return

    def _forget(self, state: UserState) -> None:
        self._states.pop(state.user_id, None)
        for room_id in list(state.joined):
            self._leave(state, room_id)
