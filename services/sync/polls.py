"""Requests that wait for news, and the time-outs that end them.

Clients nearly all ask for the same time-out and nearly none waits for all of it, so requests that wait equally long
share a timer.
"""

import asyncio

from services.sync import metrics
from services.sync.room_tails import RoomTail

STEP_SECONDS = 0.1  # waits are cut to whole steps, so that few lengths are different
EARLY_SECONDS = 0.05  # so much too early a wait may end, along with another


class _Length:
    """The waits of one length; they end in the order in which they began."""

    __slots__ = ("_ends", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: dict[asyncio.Future[None], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: asyncio.Future[None]) -> None:
        loop = future.get_loop()
        self._ends[future] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, loop)

    def discard(self, future: asyncio.Future[None]) -> None:
        self._ends.pop(future, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._ends:
            future, end = next(iter(self._ends.items()))
            if end > now + EARLY_SECONDS:
                self._timer = loop.call_later(end - now, self._look, loop)
                return
            del self._ends[future]
            if not future.done():
                future.set_result(None)


class PollTimers:
    """The time-outs of one process's waiting requests."""

    def __init__(self) -> None:
        self._lengths: dict[int, _Length] = {}

    def of(self, seconds: float) -> _Length:
        """Where waits of this length are kept."""
        steps = int(seconds / STEP_SECONDS)
        if steps == 0:
            return _Length(seconds)
        length = self._lengths.get(steps)
        if length is None:
            length = self._lengths[steps] = _Length(steps * STEP_SECONDS)
        return length


class Poll:
    """A request that waits. `ended`: its session may be over; ask who it is again."""

    __slots__ = ("_future", "_timers", "device_id", "ended", "is_woken", "tails")

    def __init__(self, device_id: str, timers: PollTimers) -> None:
        self.device_id = device_id
        self.ended = False
        self.is_woken = False
        self.tails: set[RoomTail] = set()
        self._timers = timers
        self._future: asyncio.Future[None] | None = None

    @property
    def is_parked(self) -> bool:
        """Whether it waits at this moment."""
        return self._future is not None

    def wake(self) -> None:
        """Something happened that may concern it."""
        self.is_woken = True
        if self._future is not None and not self._future.done():
            metrics.WAKES.inc()
            self._future.set_result(None)

    def wake_for(self, tail: RoomTail) -> None:
        """Something happened in a room."""
        self.tails.add(tail)
        self.wake()

    async def wait(self, seconds: float) -> bool:
        """Wait to be woken, at most so long; whether it was."""
        if self.is_woken or seconds <= 0:
            return self.is_woken
        future = self._future = asyncio.get_running_loop().create_future()
        length = self._timers.of(seconds)
        length.add(future)
        metrics.PARKED.inc()
        try:
            await future
        finally:
            metrics.PARKED.dec()
            length.discard(future)
            self._future = None
        return self.is_woken
