"""How long a handler may take.

Spec: C-S API §Standard error response (the answer is 504 M_UNKNOWN; DESIGN §11: every wait is bounded).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tessera.http.errors import MatrixError

# A backstop: longer than any wait inside a handler, of which a parked /sync is the longest (120 s).
DEFAULT_DEADLINE_SECONDS = 180.0

_ATTRIBUTE = "deadline_seconds"
_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_Made = TypeVar("_Made")


def deadline(seconds: float | None) -> Callable[[_Handler], _Handler]:
    """Give a handler a deadline of its own, for long-polls; None for one that bounds its own waits, as uploads do."""

    def mark(handler: _Handler) -> _Handler:
        setattr(handler, _ATTRIBUTE, seconds)
        return handler

    return mark


def deadline_of(handler: Callable[..., Any], default_seconds: float) -> float | None:
    """Seconds in which a handler must have made its response."""
    seconds: float | None = getattr(handler, _ATTRIBUTE, default_seconds)
    return seconds


class Deadline:
    """One length of time for many handlers that run side by side, with one timer among them.

    They end in the order in which they began, so the timer is set for the oldest; most are done long before, and
    cost an entry in a dictionary each.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begun: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def within(self, work: Coroutine[Any, Any, _Made]) -> _Made:
        """What `work` makes, if it makes it in time.

        Raises:
            MatrixError: 504; the work was cancelled.
        """
        task = asyncio.current_task()
        assert task is not None
        loop = task.get_loop()
        self._begun[task] = loop.time()
        if self._timer is None or self._loop is not loop:
            self._loop = loop
            self._timer = loop.call_later(self.seconds, self._look)
        try:
            return await work
        except asyncio.CancelledError:
            if task not in self._overdue or task.uncancel() > 0:
                raise
            raise MatrixError("The request took too long", errcode="M_UNKNOWN", status=504) from None
        finally:
            self._begun.pop(task, None)
            self._overdue.discard(task)

    def _look(self) -> None:
        assert self._loop is not None
        self._timer = None
        begun_before = self._loop.time() - self.seconds
        while self._begun:
            task, begun = next(iter(self._begun.items()))
            if begun > begun_before:
                self._timer = self._loop.call_later(begun - begun_before, self._look)
                return
            del self._begun[task]
            self._overdue.add(task)
            task.cancel()
