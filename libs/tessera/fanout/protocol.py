"""The wake-up bus between services: at most once, unordered across senders, never the truth.

Whoever subscribes must be able to lose, repeat and reorder everything that comes here and still
be right: batches have dense positions, wakes name the head that PostgreSQL has, outcomes are
rows. `on_reset` says that hints may have been lost (a reconnect): read the heads again.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from matrixcore.identifiers import RoomId, UserId
from tessera.commands import Outcome
from tessera.records import PartitionBatch
from tessera.wakes import DeviceWake, PresenceChange, SessionEnd, TypingChange, UserWake

ReplyAddresses = Mapping[bytes, Collection[str]]
"""Command ID -> the `reply_address` of everybody who waits for its outcome."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Callbacks of one listener. They run on the event loop, must not block and must not raise.

    Attributes:
        on_batch: a batch of a followed partition. One with `first` above `last` has no records and says only that
            the partition has come to `last`: what lies below is read from PostgreSQL (it was too large to send).
        wants_room: records of other rooms may be left out of batches, which spares the work of parsing them. Asked
            while a batch arrives, on the event loop.
        on_down: hints do not come from now on, until `on_reset`.
        on_reset: hints come again, and some may have been lost; before any other callback.
    """

    on_batch: Callable[[PartitionBatch], None] | None = None
    on_outcomes: Callable[[Sequence[Outcome]], None] | None = None
    on_user_wakes: Callable[[Sequence[UserWake]], None] | None = None
    on_device_wake: Callable[[DeviceWake], None] | None = None
    on_typing: Callable[[TypingChange], None] | None = None
    on_presence: Callable[[PresenceChange], None] | None = None
    on_session_end: Callable[[SessionEnd], None] | None = None
    wants_room: Callable[[RoomId], bool] | None = None
    on_down: Callable[[], None] | None = None
    on_reset: Callable[[], None] | None = None


class Subscription(Protocol):
    """A place on the fan-out; batches come for followed partitions, wakes for followed users.

    "In force": whatever is published from now on comes, or `on_reset` is called. While the fan-out is not healthy the
    methods answer at once.
    """

    @property
    def reply_address(self) -> str:
        """What a command carries so that its outcome comes to this `on_outcomes`."""

    async def follow_partitions(self, partitions: Iterable[int]) -> None:
        """Follow exactly these partitions; answers when the subscription is in force."""

    async def follow_users(self, user_ids: Iterable[UserId]) -> None:
        """Add users whose wakes are wanted; answers when in force."""

    async def unfollow_users(self, user_ids: Iterable[UserId]) -> None:
        """The users' wakes are no longer wanted."""

    async def close(self) -> None:
        """No callback runs after this."""


class Fanout(Protocol):
    """Publishing never raises for want of a connection, and waits half a second at most; delivery is not promised."""

    @property
    def is_healthy(self) -> bool:
        """Whether hints come: while they do not, whoever needs news reads PostgreSQL from time to time."""

    async def publish_batches(
        self, batches: Sequence[PartitionBatch], outcomes: Sequence[Outcome], reply_to: ReplyAddresses | None = None
    ) -> None:
        """One commit's batches and the outcomes it decided, in one round trip that is not waited for."""

    async def publish_user_wakes(self, wakes: Sequence[UserWake]) -> None:
        """User logs have moved. Like all that follow, it answers when the message has left."""

    async def publish_device_wake(self, wake: DeviceWake) -> None: ...

    async def publish_typing(self, change: TypingChange) -> None: ...

    async def publish_presence(self, change: PresenceChange) -> None: ...

    async def publish_session_ends(self, ends: Sequence[SessionEnd]) -> None:
        """Cached tokens are dead; without this they live their few seconds."""

    async def subscribe(self, subscriber: Subscriber) -> Subscription:
        """A new listener that follows nothing yet; it hears what is not for single users or partitions."""
