"""What a sender knows of the commands that lie undone in each partition.

The end of a partition is the offset of the last acknowledged command, which costs nothing to know
and counts everybody's commands. The done offset is read from PostgreSQL, only when the
difference to the one last read is a quarter of the bound, and at most four times a second for a partition.
So the estimate is never too small by more than what other senders have sent since our last
acknowledgement, and too large by what the writer did in a quarter of a second.

Spec: none; DESIGN.md section 3.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from tessera.bus.admission import RETRY_AFTER_MS, UNDONE_LIMIT
from tessera.bus.protocol import BusBusy
from tessera.clock import Clock

log = structlog.get_logger(__name__)

_LOOK_BEYOND = UNDONE_LIMIT // 4
_LOOK_SECONDS = 0.25
_PATIENCE_SECONDS = 1.0  # for PostgreSQL, before the last known offset must do


DoneOffset = tuple[str, int]
"""(id of the topic, offset up to which the commands of a partition have outcomes)."""
ReadDoneOffsets = Callable[[Sequence[int]], Awaitable[Mapping[int, DoneOffset]]]
"""The done offsets of partitions (tessera.storage.done_offsets); those that cannot be read are left out."""
FindTopicId = Callable[[], Awaitable[str]]


@dataclass(slots=True)
class _Known:
    end: int = -1  # offset of the newest command
    done: int | None = None
    looked_at: float = float("-inf")


class Backlog:
    """The bound of undone commands, as one sender keeps it."""

    def __init__(self, read_done: ReadDoneOffsets, find_topic_id: FindTopicId, clock: Clock) -> None:
        self._read_done = read_done
        self._find_topic_id = find_topic_id
        self._clock = clock
        self._known: dict[int, _Known] = {}
        self._looking: dict[int, asyncio.Task[None]] = {}

    async def admit(self, partition: int, limit: int | None) -> None:
        """Return if another command may go to a partition in which `limit` may lie undone.

        Raises:
            BusBusy: it may not.
        """
        known = self._known.get(partition)
        if known is None or limit is None or _undone(known) <= _LOOK_BEYOND:
            return
        await self._look(partition, known)
        if known.done is not None and _undone(known) >= limit:
            raise BusBusy(RETRY_AFTER_MS)

    def appended(self, partition: int, offset: int) -> None:
        """A command was acknowledged at that offset."""
        # Also where it is smaller than before: the topic was made anew.
        self._known.setdefault(partition, _Known()).end = offset

    async def _look(self, partition: int, known: _Known) -> None:
        if self._clock.monotonic() - known.looked_at < _LOOK_SECONDS:
            return
        task = self._looking.get(partition)
        if task is None:
            task = self._looking[partition] = asyncio.create_task(self._read(partition, known))
            task.add_done_callback(lambda _done: self._looking.pop(partition, None))
        # Many senders wait for one look; one that gives up does not take it from the others.
        await asyncio.shield(task)

    async def _read(self, partition: int, known: _Known) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                done = (await self._read_done([partition])).get(partition)
                if done is not None:
                    topic_id, offset = done
                    # Offsets of a topic that was made anew mean nothing: all of the new one is undone.
                    known.done = offset if topic_id == await self._find_topic_id() else -1
        except Exception as error:  # whatever it is: the writer decides, and the senders have deadlines
            log.warning("done offset not read", partition=partition, error=repr(error))
        known.looked_at = self._clock.monotonic()


def _undone(known: _Known) -> int:
    return known.end - (-1 if known.done is None else known.done)
