"""The fan-out of a cluster, over Redis or Valkey.

Spec: DESIGN.md sections 2 (6, 7), 5 and 11.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from matrixcore.identifiers import RoomId, UserId
from tessera.clock import Clock
from tessera.commands import Outcome
from tessera.config import RedisSettings
from tessera.fanout.protocol import ReplyAddresses, Subscriber
from tessera.fanout.redis import messages, metrics
from tessera.fanout.redis.connecting import Connector, RedisUnavailable, pack
from tessera.fanout.redis.messages import Channels
from tessera.fanout.redis.publishing import Publisher
from tessera.fanout.redis.subscribing import Hub
from tessera.ids import IdSource
from tessera.records import PartitionBatch
from tessera.wakes import DeviceWake, PresenceChange, SessionEnd, TypingChange, UserWake

log = structlog.get_logger(__name__)

START_SECONDS = 5.0  # so long a process waits for Redis before it goes on without
FLUSH_SECONDS = 1.0  # so long its last hints may take
CONNECTION_NAME = "tessera"

_Callback = Callable[[Any], None] | None


class _Kind(NamedTuple):
    """What comes over a channel: how it is read, for whom, and which callback gets it."""

    decode: Callable[[Sequence["RedisSubscription"], bytes], object]
    callback_of: Callable[[Subscriber], _Callback]


@dataclass(slots=True)
class _Channel:
    kind: _Kind
    listeners: dict["RedisSubscription", None] = field(default_factory=dict)


class RedisSubscription:
    """A listener in this process; all of them share one connection."""

    def __init__(self, fanout: "RedisFanout", subscriber: Subscriber, reply_address: str) -> None:
        self.subscriber = subscriber
        self._fanout = fanout
        self._reply_address = reply_address
        self._partitions: frozenset[int] = frozenset()
        self._users: set[UserId] = set()
        self._general: list[bytes] = []

    @property
    def reply_address(self) -> str:
        """What a command carries so that its outcome comes here."""
        return self._reply_address

    async def follow_partitions(self, partitions: Iterable[int]) -> None:
        """Follow exactly these partitions; answers when that is in force."""
        wanted, followed = frozenset(partitions), self._partitions
        self._partitions = wanted
        names = self._fanout.channels
        self._fanout.enter(self, [(names.partition(p), _BATCHES) for p in wanted - followed])
        self._fanout.leave(self, [names.partition(p) for p in followed - wanted])
        if wanted - followed:
            await self._fanout.in_force()

    async def follow_users(self, user_ids: Iterable[UserId]) -> None:
        """Add users whose wakes are wanted; answers when that is in force."""
        added = [user_id for user_id in user_ids if user_id not in self._users]
        self._users.update(added)
        self._fanout.enter(self, [(self._fanout.channels.user(u), _wakes_of(u)) for u in added])
        if added:
            await self._fanout.in_force()

    async def unfollow_users(self, user_ids: Iterable[UserId]) -> None:
        """The users' wakes are no longer wanted."""
        gone = [user_id for user_id in user_ids if user_id in self._users]
        self._users.difference_update(gone)
        self._fanout.leave(self, [self._fanout.channels.user(user_id) for user_id in gone])

    async def begin(self) -> None:
        """Enter the channels that the callbacks ask for; answers when that is in force."""
        names = self._fanout.channels
        offered = [
            (names.replies(self._reply_address), _OUTCOMES),
            (names.devices, _DEVICES),
            (names.typing, _TYPING),
            (names.presence, _PRESENCE),
            (names.sessions, _SESSIONS),
        ]
        wanted = [(name, kind) for name, kind in offered if kind.callback_of(self.subscriber) is not None]
        self._general = [name for name, _ in wanted]
        self._fanout.enter(self, wanted)
        if wanted:
            await self._fanout.in_force()

    async def close(self) -> None:
        """No callback runs after this."""
        channels = self._fanout.channels
        self._fanout.leave(self, [channels.partition(partition) for partition in self._partitions])
        self._fanout.leave(self, [channels.user(user_id) for user_id in self._users])
        self._fanout.leave(self, self._general)
        self._fanout.forget(self)


class RedisFanout:
    """Publishes and subscribes; made by `open_fanout`. Without Redis hints are dropped, counted, and nobody waits."""

    def __init__(self, settings: RedisSettings, clock: Clock, ids: IdSource) -> None:
        self.channels = Channels(settings.key_prefix)
        self.key_prefix = settings.key_prefix
        self._ids = ids
        self._entered: dict[bytes, _Channel] = {}
        self._subscriptions: dict[RedisSubscription, None] = {}
        connector = Connector(settings)
        self.publisher = Publisher(connector, clock, ids, f"{CONNECTION_NAME}-publish", settings.publish_timeout / 1000)
        self._hub = Hub(
            connector,
            clock,
            ids,
            f"{CONNECTION_NAME}-subscribe",
            on_message=self._on_message,
            on_up=self._on_up,
            on_down=self._on_down,
        )

    @property
    def is_healthy(self) -> bool:
        """Whether hints come: the subscriptions are in force."""
        return self._hub.is_up

    async def ping(self) -> None:
        """Ask Redis for a sign of life.

        Raises:
            RedisUnavailable
        """
        await self.publisher.call([pack("PING")])
        if not self._hub.is_up:
            raise RedisUnavailable("not subscribed")

    # Publishing

    async def publish_batches(
        self, batches: Sequence[PartitionBatch], outcomes: Sequence[Outcome], reply_to: ReplyAddresses | None = None
    ) -> None:
        """One commit's batches and the outcomes it decided, in one round trip that is not waited for."""
        if not self.publisher.is_up:
            metrics.DROPPED.labels("down").inc(len(batches) + len(outcomes))
            return
        packed: list[bytes] = []
        by_address: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            for address in filter(None, (reply_to or {}).get(outcome.command_id, ())):
                by_address.setdefault(address, []).append(outcome)
        for address, replies in by_address.items():
            channel = self.channels.replies(address)
            packed += [pack("PUBLISH", channel, message) for message in messages.encode_outcomes(replies)]
        for batch in batches:
            packed.append(pack("PUBLISH", self.channels.partition(batch.partition), messages.encode_batch(batch)))
        if packed:
            self.publisher.post(packed)

    async def publish_user_wakes(self, wakes: Sequence[UserWake]) -> None:
        """User logs have moved."""
        if wakes:
            await self.publisher.send(
                [pack("PUBLISH", self.channels.user(wake.user_id), wake.position) for wake in wakes]
            )

    async def publish_device_wake(self, wake: DeviceWake) -> None:
        """The stream of device changes has moved."""
        await self.publisher.send([pack("PUBLISH", self.channels.devices, messages.encode_device_wake(wake))])

    async def publish_typing(self, change: TypingChange) -> None:
        """A user began or stopped to type."""
        await self.publisher.send([pack("PUBLISH", self.channels.typing, messages.encode_typing(change))])

    async def publish_presence(self, change: PresenceChange) -> None:
        """A user's presence changed."""
        await self.publisher.send([pack("PUBLISH", self.channels.presence, messages.encode_presence(change))])

    async def publish_session_ends(self, ends: Sequence[SessionEnd]) -> None:
        """Cached tokens are dead."""
        if ends:
            await self.publisher.send(
                [pack("PUBLISH", self.channels.sessions, messages.encode_session_end(end)) for end in ends]
            )

    # Subscribing

    async def subscribe(self, subscriber: Subscriber) -> RedisSubscription:
        """A new listener that follows nothing yet."""
        subscription = RedisSubscription(self, subscriber, self._ids.token(12))
        self._subscriptions[subscription] = None
        await subscription.begin()
        return subscription

    def enter(self, subscription: RedisSubscription, channels: Iterable[tuple[bytes, _Kind]]) -> None:
        """Let a subscription hear channels."""
        new = []
        for name, kind in channels:
            channel = self._entered.get(name)
            if channel is None:
                channel = self._entered[name] = _Channel(kind)
                new.append(name)
            channel.listeners[subscription] = None
        self._hub.add(new)

    def leave(self, subscription: RedisSubscription, channels: Iterable[bytes]) -> None:
        """A subscription hears these channels no longer."""
        empty = []
        for name in channels:
            channel = self._entered.get(name)
            if channel is not None:
                channel.listeners.pop(subscription, None)
                if not channel.listeners:
                    del self._entered[name]
                    empty.append(name)
        self._hub.remove(empty)

    def forget(self, subscription: RedisSubscription) -> None:
        """The subscription is closed."""
        self._subscriptions.pop(subscription, None)

    async def in_force(self) -> None:
        """Return when everything that was entered is in force."""
        await self._hub.in_force()

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        entered = self._entered.get(channel)
        if entered is None:
            return
        listeners = tuple(entered.listeners)
        try:
            value = entered.kind.decode(listeners, payload)
        except Exception as error:  # whatever it is, it is nothing of ours, or of a version that is not known here
            metrics.UNREADABLE.inc()
            log.warning("hint not readable", bytes=len(payload), error=repr(error))
            return
        for listener in listeners:
            callback = entered.kind.callback_of(listener.subscriber)
            if callback is not None and listener in entered.listeners:
                _call(callback, value)

    def _on_up(self) -> None:
        for subscription in tuple(self._subscriptions):
            if (callback := subscription.subscriber.on_reset) is not None:
                _call(callback)

    def _on_down(self) -> None:
        for subscription in tuple(self._subscriptions):
            if (callback := subscription.subscriber.on_down) is not None:
                _call(callback)

    async def wait_for_first_attempt(self) -> None:
        """Return when both connections are there, or could not be had at once."""
        await self.publisher.wait_for_first_attempt()
        await self._hub.wait_for_first_attempt()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.publisher.run())
            tasks.create_task(self._hub.run())


@asynccontextmanager
async def open_fanout(settings: RedisSettings, clock: Clock, ids: IdSource) -> AsyncIterator[RedisFanout]:
    """The fan-out over the configured Redis, for as long as the block runs.

    A Redis that is away does not keep the process from starting: `is_healthy` is False until it is there.
    """
    fanout = RedisFanout(settings, clock, ids)
    running = asyncio.create_task(fanout.run(), name="fanout")
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await fanout.wait_for_first_attempt()
        yield fanout
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await fanout.publisher.flush()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def _call(callback: Callable[..., None], *values: object) -> None:
    try:
        callback(*values)
    except Exception:  # one listener's fault must not end the others' hints
        log.exception("fan-out listener failed")


def _decode_batch(listeners: Sequence[RedisSubscription], payload: bytes) -> PartitionBatch:
    """Parse what at least one of the listeners wants, once for all of them."""
    asked = [one.subscriber.wants_room for one in listeners]
    return messages.decode_batch(payload, None if None in asked else _any_of([one for one in asked if one is not None]))


def _any_of(asked: Sequence[Callable[[RoomId], bool]]) -> Callable[[RoomId], bool]:
    if len(asked) == 1:
        return asked[0]
    return lambda room_id: any(wants(room_id) for wants in asked)


def _wakes_of(user_id: UserId) -> _Kind:
    return _Kind(lambda _, payload: [UserWake(user_id, int(payload))], lambda to: to.on_user_wakes)


_BATCHES = _Kind(_decode_batch, lambda to: to.on_batch)
_OUTCOMES = _Kind(lambda _, payload: messages.decode_outcomes(payload), lambda to: to.on_outcomes)
_DEVICES = _Kind(lambda _, payload: messages.decode_device_wake(payload), lambda to: to.on_device_wake)
_TYPING = _Kind(lambda _, payload: messages.decode_typing(payload), lambda to: to.on_typing)
_PRESENCE = _Kind(lambda _, payload: messages.decode_presence(payload), lambda to: to.on_presence)
_SESSIONS = _Kind(lambda _, payload: messages.decode_session_end(payload), lambda to: to.on_session_end)
