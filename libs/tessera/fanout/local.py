"""The fan-out of one process: callbacks, no copies, no serialisation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from matrixcore.identifiers import UserId
from tessera.commands import Outcome
from tessera.fanout.protocol import ReplyAddresses, Subscriber
from tessera.records import PartitionBatch
from tessera.wakes import DeviceWake, PresenceChange, SessionEnd, TypingChange, UserWake

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class LocalSubscription:
    """A listener in this process."""

    fanout: "LocalFanout"
    subscriber: Subscriber
    partitions: frozenset[int] = frozenset()
    users: set[UserId] = field(default_factory=set)

    @property
    def reply_address(self) -> str:
        """Everybody here hears every outcome."""
        return ""

    async def follow_partitions(self, partitions: Iterable[int]) -> None:
        """Follow exactly these partitions."""
        self.partitions = frozenset(partitions)

    async def follow_users(self, user_ids: Iterable[UserId]) -> None:
        """Add users whose wakes are wanted."""
        self.users.update(user_ids)

    async def unfollow_users(self, user_ids: Iterable[UserId]) -> None:
        """The users' wakes are no longer wanted."""
        self.users.difference_update(user_ids)

    async def close(self) -> None:
        """No callback runs after this."""
        self.fanout.subscriptions.discard(self)


class LocalFanout:
    """Publishing calls every listener before it returns; a listener that raises hurts nobody else."""

    def __init__(self) -> None:
        self.subscriptions: set[LocalSubscription] = set()

    @property
    def is_healthy(self) -> bool:
        """Always."""
        return True

    async def publish_batches(
        self, batches: Sequence[PartitionBatch], outcomes: Sequence[Outcome], reply_to: ReplyAddresses | None = None
    ) -> None:
        """One commit's batches and the outcomes it decided."""
        for subscription in tuple(self.subscriptions):
            subscriber = subscription.subscriber
            try:
                if subscriber.on_outcomes is not None and outcomes:
                    subscriber.on_outcomes(outcomes)
                if subscriber.on_batch is not None:
                    for batch in batches:
                        if batch.partition in subscription.partitions:
                            subscriber.on_batch(batch)
            except Exception:  # a listener's fault must not look like a failed commit to the writer
                log.exception("fan-out listener failed")

    async def publish_user_wakes(self, wakes: Sequence[UserWake]) -> None:
        """User logs have moved."""
        for subscription in tuple(self.subscriptions):
            if (callback := subscription.subscriber.on_user_wakes) is None:
                continue
            if wanted := [wake for wake in wakes if wake.user_id in subscription.users]:
                callback(wanted)

    async def publish_device_wake(self, wake: DeviceWake) -> None:
        """The stream of device changes has moved."""
        for subscription in tuple(self.subscriptions):
            if (callback := subscription.subscriber.on_device_wake) is not None:
                callback(wake)

    async def publish_typing(self, change: TypingChange) -> None:
        """A user began or stopped to type."""
        for subscription in tuple(self.subscriptions):
            if (callback := subscription.subscriber.on_typing) is not None:
                callback(change)

    async def publish_presence(self, change: PresenceChange) -> None:
        """A user's presence changed."""
        for subscription in tuple(self.subscriptions):
            if (callback := subscription.subscriber.on_presence) is not None:
                callback(change)

    async def publish_session_ends(self, ends: Sequence[SessionEnd]) -> None:
        """Cached tokens are dead."""
        for subscription in tuple(self.subscriptions):
            if (callback := subscription.subscriber.on_session_end) is not None:
                for end in ends:
                    callback(end)

    async def subscribe(self, subscriber: Subscriber) -> LocalSubscription:
        """A new listener that follows nothing yet."""
        subscription = LocalSubscription(self, subscriber)
        self.subscriptions.add(subscription)
        return subscription
