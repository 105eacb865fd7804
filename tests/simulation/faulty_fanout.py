"""Redis as the worst network shows it: messages are lost, repeated, late and out of order; the server can be away."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from faulty_bus import Faults
from sim_process import SimProcess
from virtual_loop import VirtualLoop

from matrixcore.identifiers import UserId
from tessera.commands import Outcome, decode_outcome, encode_outcome
from tessera.fanout import ReplyAddresses, Subscriber
from tessera.records import PartitionBatch, decode_batch, encode_batch
from tessera.wakes import DeviceWake, PresenceChange, SessionEnd, TypingChange, UserWake


@dataclass(eq=False)
class FaultySubscription:
    """A listener in one process."""

    server: "FanoutServer"
    process: SimProcess
    subscriber: Subscriber
    partitions: frozenset[int] = frozenset()
    users: set[UserId] = field(default_factory=set)

    @property
    def reply_address(self) -> str:
        """Everybody hears every outcome."""
        return "everybody"

    async def follow_partitions(self, partitions: Iterable[int]) -> None:
        self.partitions = frozenset(partitions)

    async def follow_users(self, user_ids: Iterable[UserId]) -> None:
        self.users.update(user_ids)

    async def unfollow_users(self, user_ids: Iterable[UserId]) -> None:
        self.users.difference_update(user_ids)

    async def close(self) -> None:
        self.server.subscriptions.pop(self, None)


class FanoutServer:
    """The server that all processes publish to."""

    def __init__(self, loop: VirtualLoop, faults: Faults) -> None:
        self.subscriptions: dict[FaultySubscription, None] = {}  # in the same order in every run
        self.is_known_down = False
        self._loop = loop
        self._faults = faults

    @property
    def is_down(self) -> bool:
        """Whether nothing gets through."""
        return self._faults.redis_down

    def deliver(self, callback: Callable[[FaultySubscription], None]) -> None:
        """To every listener by a way of its own."""
        if self._faults.redis_down:
            return
        for subscription in tuple(self.subscriptions):
            if self._faults.happens(0.04):
                continue
            self._loop.call_later(self._faults.delay(), self._hand_over, subscription, callback)
            if self._faults.happens(0.04):
                self._loop.call_later(self._faults.delay() * 2, self._hand_over, subscription, callback)

    def _hand_over(self, subscription: FaultySubscription, callback: Callable[[FaultySubscription], None]) -> None:
        if subscription not in self.subscriptions or subscription.process.dead:
            return
        if subscription.process.paused:
            self._loop.call_later(0.5, self._hand_over, subscription, callback)
            return
        subscription.process.call(callback, subscription)

    def go_down(self) -> None:
        """Everybody sees that the server is away."""
        self.is_known_down = True
        for subscription in tuple(self.subscriptions):
            self._hand_over(subscription, _tell_down)

    def reset(self) -> None:
        """The server is back after it was away: everybody connects again."""
        self.is_known_down = False
        for subscription in tuple(self.subscriptions):
            if subscription.subscriber.on_reset is not None:
                self._hand_over(subscription, _tell_reset)


def _tell_down(subscription: FaultySubscription) -> None:
    if subscription.subscriber.on_down is not None:
        subscription.subscriber.on_down()


def _tell_reset(subscription: FaultySubscription) -> None:
    if subscription.subscriber.on_reset is not None:
        subscription.subscriber.on_reset()


class FaultyFanout:
    """The fan-out as one process sees it."""

    def __init__(self, server: FanoutServer, process: SimProcess) -> None:
        self._server = server
        self._process = process

    @property
    def is_healthy(self) -> bool:
        """Whether the server is there."""
        return not self._server.is_down

    async def publish_batches(
        self, batches: Sequence[PartitionBatch], outcomes: Sequence[Outcome], reply_to: ReplyAddresses | None = None
    ) -> None:
        encoded = [encode_outcome(outcome) for outcome in outcomes]
        if encoded:
            self._server.deliver(lambda to: _give_outcomes(to, encoded))
        for batch in batches:
            data = encode_batch(batch)
            self._server.deliver(lambda to, partition=batch.partition, data=data: _give_batch(to, partition, data))  # type: ignore[misc]

    async def publish_user_wakes(self, wakes: Sequence[UserWake]) -> None:
        self._server.deliver(lambda to: _give_wakes(to, wakes))

    async def publish_device_wake(self, wake: DeviceWake) -> None:
        self._server.deliver(lambda to: _give(to.subscriber.on_device_wake, wake))

    async def publish_typing(self, change: TypingChange) -> None:
        self._server.deliver(lambda to: _give(to.subscriber.on_typing, change))

    async def publish_presence(self, change: PresenceChange) -> None:
        self._server.deliver(lambda to: _give(to.subscriber.on_presence, change))

    async def publish_session_ends(self, ends: Sequence[SessionEnd]) -> None:
        for end in ends:
            self._server.deliver(lambda to, end=end: _give(to.subscriber.on_session_end, end))  # type: ignore[misc]

    async def subscribe(self, subscriber: Subscriber) -> FaultySubscription:
        subscription = FaultySubscription(self._server, self._process, subscriber)
        self._server.subscriptions[subscription] = None
        return subscription


def _give(callback: Callable[[Any], None] | None, value: object) -> None:
    if callback is not None:
        callback(value)


def _give_outcomes(to: FaultySubscription, encoded: Sequence[bytes]) -> None:
    _give(to.subscriber.on_outcomes, [decode_outcome(data) for data in encoded])


def _give_batch(to: FaultySubscription, partition: int, data: bytes) -> None:
    if partition in to.partitions:
        _give(to.subscriber.on_batch, decode_batch(data))


def _give_wakes(to: FaultySubscription, wakes: Sequence[UserWake]) -> None:
    if wanted := [wake for wake in wakes if wake.user_id in to.users]:
        _give(to.subscriber.on_user_wakes, wanted)
