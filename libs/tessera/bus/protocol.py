"""The partitioned topics: room.commands and room.pdus to the writers, room.log from them.

Nothing here is the truth: commands count once their outcome is a row, records once they are
committed. A topic may be emptied at any time.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tessera.commands import Command
from tessera.records import LogRecord


class BusUnavailable(Exception):
    """The topic does not take or give records now."""


class BusBusy(BusUnavailable):
    """Too many commands lie undone above the partition's done offset."""

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__(f"retry after {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


class TopicReplaced(BusUnavailable):
    """The topic was made anew or lost its end: old offsets mean nothing, the reader has no partition any more."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A command with its place in its partition's topic."""

    partition: int
    offset: int
    command: Command


class CommandReader(Protocol):
    """A writer's view of the command topic: partitions assigned by hand, read from given offsets."""

    @property
    def topic_id(self) -> str:
        """Changes when the topic was made anew, so that old offsets mean nothing."""

    async def assign(self, partition: int, done_offset: int | None) -> None:
        """Read a partition after `done_offset`; None or an offset out of range: from what is there."""

    async def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The offset of the newest command of each partition, -1 if it never had one."""

    async def revoke(self, partition: int) -> None:
        """Give a partition up; commands of it that were not taken yet are not delivered."""

    async def take(self, limit: int) -> list[Delivered]:
        """All that is ready in the assigned partitions, in order for each, at most `limit`; waits for the first.

        Raises:
            TopicReplaced: `topic_id` may have changed with this; every partition must be taken anew.
            BusUnavailable: the topic cannot be read now.
        """

    def take_ready(self, limit: int) -> list[Delivered]:
        """Like `take`, without waiting: nothing if nothing is ready."""

    def done(self, partition: int, offset: int) -> None:
        """Everything up to `offset` has an outcome; frees its places (at most 2,000 lie undone)."""

    async def close(self) -> None: ...


class CommandBus(Protocol):
    """The command topic."""

    async def send(self, command: Command) -> None:
        """Hand a command to its partition.

        Raises:
            BusBusy, BusUnavailable: it was not taken, or that is unknown; the caller withdraws its id.
        """

    async def open_reader(self) -> CommandReader: ...


class RecordReader(Protocol):
    """A consumer's view of room.log."""

    async def assign(self, partition: int, after_position: int) -> None:
        """Read a partition's records above a position; what the topic no longer has is skipped (a hole)."""

    async def revoke(self, partition: int) -> None: ...

    async def take(self, limit: int) -> list[LogRecord]:
        """What is ready in the assigned partitions, in order for each; waits for the first."""

    async def close(self) -> None: ...


class LogEnd(NamedTuple):
    """Where a partition of room.log ends."""

    incarnation: int
    position: int


class RecordBus(Protocol):
    """room.log."""

    async def find_ends(self, partitions: Sequence[int]) -> dict[int, LogEnd]:
        """The newest record of each of these partitions that has any; one that cannot be read is left out.

        Raises:
            BusUnavailable: the topic cannot be read now.
        """

    async def announce(self, partition: int, records: Sequence[LogRecord]) -> None:
        """Append records in order.

        Raises:
            BusUnavailable: nobody knows how many were taken; the pump tries from the same place again.
        """

    async def open_reader(self) -> RecordReader: ...
