"""Where the time comes from. Everything that needs it takes a `Clock` as an argument."""

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for people and events, monotonic time for durations, and a way to wait."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch. May jump; never compare those of two machines."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment of this process. Never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds of `monotonic()`; 0 or less only yields once."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class FakeClock:
    """A clock that stands still until a test moves it.

    Both times move together. `advance` wakes due sleepers in the order of their deadlines and
    lets each of them run before the next one, so that a chain of short sleeps inside one long
    step behaves as it would in real time.
    """

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), waiter))
        await waiter

    async def advance(self, seconds: float) -> None:
        """Move the time on by `seconds`, running everything that falls due on the way."""
        end = self._monotonic + seconds
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, waiter = heapq.heappop(self._sleepers)
            self._move_to(due)
            if not waiter.done():
                waiter.set_result(None)
            await _settle()
        self._move_to(end)

    def shift(self, seconds: float) -> None:
        """Move the time on at once, without running anybody: for code that does not wait."""
        self._move_to(self._monotonic + seconds)

    def _move_to(self, monotonic: float) -> None:
        # Absolute, so that many small steps do not lose milliseconds to rounding.
        self._now_ms += round(monotonic * 1000) - round(self._monotonic * 1000)
        self._monotonic = monotonic


async def _settle() -> None:
    # A woken task needs a few turns of the loop to reach its next await.
    for _ in range(8):
        await asyncio.sleep(0)
