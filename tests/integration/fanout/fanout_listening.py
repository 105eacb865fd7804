"""Listeners that remember what they heard, and batches for them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.commands import Outcome, OutcomeStatus
from tessera.fanout import Fanout, Subscriber, Subscription
from tessera.records import EventBody, LogRecord, PartitionBatch, RecordKind

ALICE, BOB = UserId("@alice:test.example"), UserId("@bob:test.example")
ROOM, OTHER_ROOM = RoomId("!room:test.example"), RoomId("!other:test.example")
PATIENCE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Ends:
    """The sending and the receiving end."""

    here: Fanout
    there: Fanout


@dataclass(slots=True)
class Listener:
    """Everything that a subscription was told, in order, as (kind, value)."""

    heard: list[tuple[str, Any]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    wants_room: Callable[[RoomId], bool] | None = None

    def hear(self, kind: str) -> Callable[..., None]:
        """A callback that notes what it gets."""

        def callback(*values: Any) -> None:
            self.heard.append((kind, *values))
            self.news.set()

        return callback

    def subscriber(self) -> Subscriber:
        """With every callback."""
        return Subscriber(
            on_batch=self.hear("batch"),
            on_outcomes=self.hear("outcomes"),
            on_user_wakes=self.hear("user_wakes"),
            on_device_wake=self.hear("device_wake"),
            on_typing=self.hear("typing"),
            on_presence=self.hear("presence"),
            on_session_end=self.hear("session_end"),
            wants_room=self.wants_room,
            on_down=self.hear("down"),
            on_reset=self.hear("reset"),
        )

    async def subscribe(self, fanout: Fanout) -> Subscription:
        """Listen on a fan-out."""
        return await fanout.subscribe(self.subscriber())

    def of(self, kind: str) -> list[Any]:
        """What was told of one kind."""
        return [heard[1] for heard in self.heard if heard[0] == kind]

    def kinds(self) -> list[str]:
        """The kinds, in order."""
        return [heard[0] for heard in self.heard]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of what was heard."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self.news.clear()
                await self.news.wait()


def record(position: int, room_id: RoomId = ROOM, *, partition: int = 3, size: int = 20) -> LogRecord:
    """An event's record with a body of about that size."""
    body = EventBody(
        EventId(f"$event{position}"), "m.room.message", None, ALICE, 1_700_000_000_000, b'{"body":"%b"' % (b"x" * size)
    )
    return LogRecord(1, partition, position, room_id, position - 1, RecordKind.EVENT, body)


def batch(first: int, last: int, *, partition: int = 3, size: int = 20) -> PartitionBatch:
    """A batch of one room's events."""
    records = tuple(record(position, partition=partition, size=size) for position in range(first, last + 1))
    return PartitionBatch(1, partition, first, last, records)


def outcome(name: bytes, partition: int = 3) -> Outcome:
    """An accepted command."""
    return Outcome(name.ljust(32, b"."), OutcomeStatus.ACCEPTED, partition, 1, 7, (EventId("$event7"),))
