"""The wake-up bus between services: at most once, unordered across senders, never the truth.

Whoever subscribes must be able to lose, repeat and reorder everything that comes here and still
be right: batches have dense positions, wakes name the head that PostgreSQL has, outcomes are
rows. `on_reset` says that hints may have been lost (a reconnect): read the heads again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from matrixcore.identifiers import UserId
from tessera.commands import Outcome
from tessera.records import PartitionBatch
from tessera.wakes import DeviceWake, PresenceChange, TypingChange, UserWake


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Callbacks of one listener. They run on the event loop, must not block and must not raise."""

    on_batch: Callable[[PartitionBatch], None] | None = None
    on_outcomes: Callable[[Sequence[Outcome]], None] | None = None
    on_user_wakes: Callable[[Sequence[UserWake]], None] | None = None
    on_device_wake: Callable[[DeviceWake], None] | None = None
    on_typing: Callable[[TypingChange], None] | None = None
    on_presence: Callable[[PresenceChange], None] | None = None
    on_reset: Callable[[], None] | None = None


class Subscription(Protocol):
    """A place on the fan-out; batches come for followed partitions, wakes for followed users."""

    async def follow_partitions(self, partitions: Iterable[int]) -> None:
        """Follow exactly these partitions; answers when the subscription is in force."""

    async def follow_users(self, user_ids: Iterable[UserId]) -> None:
        """Add users whose wakes are wanted; answers when in force."""

    async def unfollow_users(self, user_ids: Iterable[UserId]) -> None:
        """The users' wakes are no longer wanted."""

    async def close(self) -> None:
        """No callback runs after this."""


class Fanout(Protocol):
    """Publishing returns once the message has left; delivery is not promised."""

    async def publish_batches(self, batches: Sequence[PartitionBatch], outcomes: Sequence[Outcome]) -> None:
        """One commit's batches and the outcomes it decided, in one round trip."""

    async def publish_user_wakes(self, wakes: Sequence[UserWake]) -> None: ...

    async def publish_device_wake(self, wake: DeviceWake) -> None: ...

    async def publish_typing(self, change: TypingChange) -> None: ...

    async def publish_presence(self, change: PresenceChange) -> None: ...

    async def subscribe(self, subscriber: Subscriber) -> Subscription: ...
