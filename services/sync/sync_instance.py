"""One process's share of /sync: answers requests, parks those without news, and wakes them.

Answers come from memory where they can and from a snapshot where they must; both mean the same by a token, so a
client may go from one process to another between any two requests.

Spec: C-S API §Syncing; DESIGN.md section 5.
"""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

from matrixcore.identifiers import RoomId, UserId
from services.sync import metrics
from services.sync.deliveries import Deliveries
from services.sync.ephemeral import PresenceBoard, TypingBoard
from services.sync.lazy_members import LazyMemory
from services.sync.live_answers import DevicesHead, LiveAnswers
from services.sync.partition_feed import PartitionFeed
from services.sync.polls import Poll, PollTimers
from services.sync.room_tails import RoomTail, RoomTails, wake
from services.sync.sliding.room_facts import note_record
from services.sync.snapshot import Snapshots, SyncAnswer
from services.sync.sync_request import SyncRequest
from services.sync.unloaded import UnloadedUsers
from services.sync.user_states import MAX_POLLS_PER_USER, UserState, UserStates
from tessera.clock import Clock
from tessera.fanout import DeviceWake, Fanout, PresenceChange, Subscriber, Subscription, TypingChange
from tessera.http.errors import LimitExceeded
from tessera.records import EventBody, LogRecord, StateBody
from tessera.storage import device_changes, sync_reads, to_device
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.device_changes import DeviceChangeRow
from tessera.storage.presence import Presence
from tessera.storage.shards import RoomShards
from tessera.sync_token import SyncToken

log = structlog.get_logger(__name__)

COMPARE_SECONDS = 30.0
BLIND_COMPARE_SECONDS = 1.0  # while the fan-out brings nothing
TYPING_SECONDS = 1.0
NEWS_SECONDS = 0.05  # device changes and presences are gathered so long
RETRY_SECONDS = 1.0
MAX_PARKED = 50_000
MAX_DEVICE_CHANGES = 1_000  # read at once
_MEMBER = "m.room.member"


class SessionEnded(Exception):
    """The request's session may be over: authenticate it again."""


@dataclass(slots=True)
class _News:
    """What waits to be told to the users around: gathered, for one query a shard."""

    presences: dict[UserId, tuple[int, Presence]]
    devices: bool = False


class SyncInstance:
    """Everything that /sync needs in one process."""

    def __init__(
        self,
        accounts: Database,
        shards: RoomShards,
        fanout: Fanout,
        clock: Clock,
        instance: int,
        *,
        presence_enabled: bool = True,
    ) -> None:
        self._accounts = accounts
        self._shards = shards
        self._fanout = fanout
        self._clock = clock
        self.memory = LazyMemory()
        self.typing = TypingBoard(clock)
        self.presence = PresenceBoard()
        self.tails = RoomTails()
        self.feed = PartitionFeed(shards, self.tails, clock, self._on_record, self._on_advance)
        self.users = UserStates(accounts, shards, self.feed, self.tails, clock)
        self.snapshots = Snapshots(
            accounts, shards, clock, self.typing, self.presence, self.memory, instance, presence_enabled
        )
        self._devices = DevicesHead()
        self._deliveries = Deliveries(clock)
        self.live = LiveAnswers(self.snapshots, self.feed.heads, self._devices)
        self._subscription: Subscription | None = None
        self._news = _News({})
        self._has_news = asyncio.Event()
        self._parked = 0
        self._timers = PollTimers()
        self._is_stopping = False
        self._unloaded = UnloadedUsers(self.snapshots, self.memory, clock, is_stopping=lambda: self._is_stopping)
        self._logs_in_doubt = False
        self._was_reset = asyncio.Event()

    async def start(self) -> None:
        """Take a place on the fan-out; before the first request."""
        self._subscription = await self._fanout.subscribe(
            Subscriber(
                on_batch=self.feed.on_batch,
                on_user_wakes=self.users.on_wakes,
                on_device_wake=self._on_device_wake,
                on_typing=self._on_typing,
                on_presence=self._on_presence if self.snapshots.presence_enabled else None,
                wants_room=lambda room_id: room_id in self.tails.rooms,
                on_reset=self._on_reset,
            )
        )
        self.feed.attach(self._subscription)
        self.users.attach(self._subscription)
        async with self._accounts.reading() as tx:
            self._devices.head = await device_changes.find_head(tx)
        self.users.devices_head = self._devices.head

    async def run(self) -> None:
        """Run for ever: repairs, comparisons, and what is gathered before it is told."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.feed.run_repairs())
            tasks.create_task(self.users.run_catching_up())
            tasks.create_task(self._run_comparing())
            tasks.create_task(self._run_after_resets())
            tasks.create_task(self._run_typing())
            tasks.create_task(self._run_news())

    async def stop(self) -> None:
        """Hear nothing more; waiting requests are answered as they are, and new ones do not wait."""
        self._is_stopping = True
        if self._subscription is not None:
            await self._subscription.close()
        for state in self.users.all():
            state.wake()

    async def sync(self, request: SyncRequest) -> bytes:
        """The answer to a request, after news or its time-out.

        Raises:
            SessionEnded, LimitExceeded, DatabaseUnavailable
        """
        try:
            state = await self.users.get(request.user_id)
        except DatabaseUnavailable:  # of a shard, perhaps: a snapshot says what can be said without it
            return await self._unloaded.answer(request)
        if request.since is not None:
            await self.confirm_messages(state, request.device_id, request.since.to_device)
        with self.polling(state, request.device_id) as poll:
            return await self._answer(state, poll, request)

    @contextmanager
    def polling(self, state: UserState, device_id: str) -> Iterator[Poll]:
        """A request's place among those that wait.

        Raises:
            LimitExceeded
        """
        if len(state.polls) >= MAX_POLLS_PER_USER or self._parked >= MAX_PARKED:
            raise LimitExceeded(2_000)
        poll = Poll(device_id, self._timers)
        state.polls.add(poll)
        self._parked += 1
        try:
            yield poll
        finally:
            state.polls.discard(poll)
            self._parked -= 1

    def note_delivery(self, tails: Collection[RoomTail], since: SyncToken) -> None:
        """An answer that waited brings what these rooms have after its token."""
        self._deliveries.note(tails, since)

    @property
    def is_stopping(self) -> bool:
        """Whether nobody should wait any longer."""
        return self._is_stopping

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows what was missed: after a reset, until the heads are read again."""
        return self._logs_in_doubt or self.feed.is_in_doubt

    async def _answer(self, state: UserState, poll: Poll, request: SyncRequest) -> bytes:
        deadline = self._clock.monotonic() + request.timeout_ms / 1000
        changed: Collection[RoomTail] | None = None
        is_over = False
        if self._is_quiet(state, request):
            is_over = not await self.park(poll, request.timeout_ms / 1000)
            changed = poll.tails
        while True:
            poll.is_woken = False
            poll.tails = set()
            answer = await self._compose(state, request, changed)
            remaining = deadline - self._clock.monotonic()
            is_due = is_over or remaining <= 0 or self._is_stopping
            if not answer.is_empty or request.since is None or request.full_state or is_due:
                encoded = answer.encode(self.memory, request)
                if changed and request.since is not None and not answer.is_empty:
                    self._deliveries.note(changed, request.since)
                return encoded
            # What was found to be nothing need not be looked at again.
            request = request._replace(since=answer.token)
            is_over = not await self.park(poll, remaining)
            changed = poll.tails

    def _is_quiet(self, state: UserState, request: SyncRequest) -> bool:
        """Whether a request can wait without a look at its rooms: most do, coming back for more."""
        return (
            request.since is not None
            and request.timeout_ms > 0
            and not request.full_state
            and not self._is_stopping
            and state.heard_head <= state.log_head
            and not self.is_in_doubt
            and self.live.is_quiet(state, request.since)
        )

    async def park(self, poll: Poll, seconds: float) -> bool:
        """Wait for news, and whether there are any.

        Raises:
            SessionEnded
        """
        is_woken = await poll.wait(seconds)
        if poll.ended:
            raise SessionEnded
        return is_woken

    async def _compose(
        self, state: UserState, request: SyncRequest, changed: Collection[RoomTail] | None
    ) -> SyncAnswer:
        if request.since is not None and request.since.user > state.log_head:
            state.heard_head = max(state.heard_head, request.since.user)
        # A key that is committed and heard of comes before the event that it opens.
        if state.heard_head > state.log_head:
            await self.users.catch_up(state)
            changed = None
        answer = None
        if not self.is_in_doubt:
            with suppress(DatabaseUnavailable):  # of one shard, perhaps: a snapshot says what can be said without it
                answer = await self.live.compose(state, request, changed)
        if answer is not None:
            metrics.ANSWERS_FROM_MEMORY.inc()
            return answer
        metrics.ANSWERS_FROM_DATABASE.inc()
        answer = await self.snapshots.read(request)
        if state.log_head == answer.token.user:
            for room_id, counts in answer.unread.items():
                if (tail := state.joined.get(room_id)) is not None:
                    state.unread[room_id] = (answer.token.positions[tail.partition].position, counts)
        return answer

    async def confirm_messages(self, state: UserState, device_id: str, position: int) -> None:
        """Delete the to-device messages that the device shows to have: those up to this position."""
        if position <= state.confirmed.get(device_id, 0):
            return
        if position > state.log_head:
            return  # this process is behind, or PostgreSQL was restored: then these are others than the device has
        known = state.entries_after(state.confirmed.get(device_id, -1))
        if known is None or any(entry.key == device_id and entry.position <= position for entry in known):
            async with self._accounts.reading() as tx:
                await to_device.delete_up_to(tx, state.user_id, device_id, position)
        state.confirmed[device_id] = position

    def _on_advance(self, tails: Collection[RoomTail]) -> None:
        """Wake whoever waits for one of these rooms."""
        now = self._clock.monotonic()
        for tail in tails:
            tail.heard_at = now
        wake(tails)

    def _on_record(self, tail: RoomTail, record: LogRecord) -> None:
        """Note a leave that the user log does not have yet: nothing after it is for the user."""
        note_record(tail, record, self._clock.now_ms())
        body = record.body
        if isinstance(body, StateBody):
            gone = [one.user_id for one in body.memberships if one.membership != "join"]
        # Without a membership a member event lost to another one, and changed nothing.
        elif isinstance(body, EventBody) and body.type == _MEMBER and body.membership not in ("join", None):
            gone = [UserId(body.state_key or "")]
        else:
            return
        for user_id in gone:
            state = self.users.find(user_id)
            # The log may be ahead of the channel: a leave from before the join that it tells of cuts nothing.
            if state is not None and state in tail.users and record.position > state.joined_at.get(tail.room_id, 0):
                state.cuts.setdefault(tail.room_id, record.position)

    def _on_reset(self) -> None:
        self.feed.on_reset()
        self._logs_in_doubt = True
        self._was_reset.set()

    async def _run_after_resets(self) -> None:
        """Find whose logs moved unheard, in one query for all: waking everybody to look would be a stampede."""
        while True:
            await self._was_reset.wait()
            self._was_reset.clear()
            try:
                await self.compare()
            except Exception as error:  # nobody is answered from memory until it succeeds
                log.warning("heads are not readable now", exc_info=not isinstance(error, DatabaseUnavailable))
                self._was_reset.set()
                await self._clock.sleep(RETRY_SECONDS)
                continue
            self._logs_in_doubt = self._was_reset.is_set()

    def _on_typing(self, change: TypingChange) -> None:
        if self.typing.apply(change):
            self._wake_rooms([change.room_id])

    def _on_presence(self, change: PresenceChange) -> None:
        self.presence.apply(change)
        found = self.presence.find(change.user_id)
        if found is not None:
            self._news.presences[change.user_id] = (self.presence.count, found)
            self._has_news.set()

    def _on_device_wake(self, wake_up: DeviceWake) -> None:
        if wake_up.position > self._devices.head:
            self._news.devices = True
            self._has_news.set()

    def _wake_rooms(self, room_ids: Sequence[RoomId]) -> None:
        for room_id in room_ids:
            if (tail := self.tails.rooms.get(room_id)) is not None:
                wake([tail])

    async def _run_comparing(self) -> None:
        compared_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(BLIND_COMPARE_SECONDS)
            now = self._clock.monotonic()
            if self._fanout.is_healthy and now - compared_at < COMPARE_SECONDS:
                continue
            compared_at = now
            metrics.TAIL_BYTES.set(self.tails.bytes_held)
            try:
                await self.compare()
            except Exception as error:  # compared again in a while, whatever it was
                log.warning("heads are not readable now", exc_info=not isinstance(error, DatabaseUnavailable))

    async def compare(self) -> None:
        """Find in PostgreSQL what no hint told: one query a shard, two for the accounts.

        Raises:
            DatabaseUnavailable
        """
        # In this order: a key that is in a log before the event that it opens is heard of before the event.
        behind = await self.feed.list_behind()
        await self.users.compare()
        self.feed.mend(behind)
        self._news.devices = True
        self._has_news.set()

    async def _run_typing(self) -> None:
        while True:
            await self._clock.sleep(TYPING_SECONDS)
            if not self.typing.is_quiet:
                self._wake_rooms(self.typing.expire())

    async def _run_news(self) -> None:
        while True:
            await self._has_news.wait()
            await self._clock.sleep(NEWS_SECONDS)
            self._has_news.clear()
            news, self._news = self._news, _News({})
            try:
                await self.tell(news.presences, with_devices=news.devices)
            except Exception as error:  # kept and told later, whatever it was
                log.warning("news cannot be told now", exc_info=not isinstance(error, DatabaseUnavailable))
                self._news.devices |= news.devices
                self._news.presences = {**news.presences, **self._news.presences}
                self._has_news.set()
                await self._clock.sleep(RETRY_SECONDS)

    async def tell(self, presences: dict[UserId, tuple[int, Presence]], *, with_devices: bool) -> None:
        """Tell device changes and presences to the users who share a room with whom they are about."""
        told = self.presence.count  # what comes while this reads is gathered for the next time
        rows: list[DeviceChangeRow] = []
        if with_devices:
            async with self._accounts.reading() as tx:
                rows = await device_changes.list_changes(tx, self._devices.head, (1 << 63) - 1, MAX_DEVICE_CHANGES)
        subjects = {row.change.user_id for row in rows if not row.change.observer} | presences.keys()
        around = await self._users_around(subjects)
        touched: set[UserState] = set()
        for row in rows:
            observer = row.change.observer
            states = around.get(row.change.user_id, set()) if not observer else self._state_of(UserId(observer))
            for state in states:
                state.add_device_news(row.position, row.change.user_id)
                touched.add(state)
        for user_id, (count, presence) in presences.items():
            for state in around.get(user_id, ()):
                state.add_presence_news(count, presence)
                touched.add(state)
        if rows:
            self._devices.head = self.users.devices_head = rows[-1].position
        self.users.presence_count = self._devices.presence = told
        for state in touched:
            state.wake()
        if len(rows) >= MAX_DEVICE_CHANGES:
            self._news.devices = True
            self._has_news.set()

    def _state_of(self, user_id: UserId) -> set[UserState]:
        state = self.users.find(user_id)
        return set() if state is None else {state}

    async def _users_around(self, subjects: Collection[UserId]) -> dict[UserId, set[UserState]]:
        """Who here shares a room with each of the subjects; the subjects themselves too. One query a shard."""
        around: dict[UserId, set[UserState]] = {user_id: self._state_of(user_id) for user_id in subjects}
        if not subjects or not len(self.users):
            return around
        for database in self._shards.databases.values():
            async with database.reading() as tx:
                rooms = await sync_reads.list_rooms_of_users(tx, subjects)
            for user_id, room_id in rooms:
                if (tail := self.tails.rooms.get(room_id)) is not None:
                    around[user_id] |= tail.users
        return around
