"""A simulated operating-system process: tasks that can be paused or killed at any await, and what dies with them."""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any

from virtual_loop import HERE, NumberedTask, VirtualLoop

Step = Callable[["SimProcess"], None]


class ProcessDied(Exception):
    """The process that was asked is gone; the asker's connection was cut."""


class SimProcess:
    """Everything that runs inside `start` belongs to it: its tasks, their children, their connections.

    Args:
        before_step: called before each step of each task; may pause or kill the process.
    """

    def __init__(self, name: str, loop: VirtualLoop, before_step: Step) -> None:
        self.name = name
        self.dead = False
        self.buried = False
        self.loop = loop
        self.failure: BaseException | None = None
        self._before_step = before_step
        self._resumed: asyncio.Future[None] | None = None
        self._waiting: set[asyncio.Future[Any]] = set()
        self._context = copy_context()
        self._context.run(HERE.set, self)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def halted(self) -> bool:
        """Paused or dead."""
        return self.dead or self._resumed is not None

    @property
    def paused(self) -> bool:
        return not self.dead and self._resumed is not None

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run in this process."""
        return self.loop.create_task(coroutine, context=self._context.copy())

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call in this process: what the function starts belongs to it."""
        return self._context.copy().run(function, *args)

    async def ask(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Have work done here for somebody outside, who loses the connection when the process dies.

        Raises:
            ProcessDied: it is dead, or dies first.
        """
        if self.dead:
            work.close()
            raise ProcessDied(self.name)
        answer: asyncio.Future[Any] = self.loop.create_future()
        self._waiting.add(answer)

        async def run() -> None:
            try:
                result = await work
            except BaseException as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(result)

        task = self.spawn(run())
        try:
            return await answer
        finally:
            self._waiting.discard(answer)
            if answer.cancelled() and not self.halted:
                task.cancel()

    def pause(self) -> None:
        """SIGSTOP."""
        if not self.halted:
            self._resumed = self.loop.create_future()

    def resume(self) -> None:
        """SIGCONT."""
        if self._resumed is not None and not self.dead:
            resumed, self._resumed = self._resumed, None
            resumed.set_result(None)
            self.loop.go_on(self)

    def kill(self) -> None:
        """SIGKILL: no task runs another step, not even its `finally`; PostgreSQL sees the connections end."""
        if self.dead:
            return
        self.dead = True
        self.loop.cut(self)
        for answer in tuple(self._waiting):
            if not answer.done():
                answer.set_exception(ProcessDied(self.name))

    def bury(self) -> None:
        """Free what a dead process left; at the end of a run."""
        self.buried = True
        for task in tuple(self._tasks):
            task.cancel()

    def adopt(self, coroutine: Coroutine[Any, Any, Any], context: Context | None) -> "asyncio.Task[Any]":
        """A task of this process."""
        task = NumberedTask(_gated(coroutine, self), loop=self.loop, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def gate(self) -> "asyncio.Future[None] | None":
        """What a task has to wait for before its next step."""
        if not self.dead:
            self._before_step(self)
        if self.dead:
            return self.loop.create_future()
        return self._resumed


@types.coroutine
def _gated(coroutine: Coroutine[Any, Any, Any], process: SimProcess) -> Generator[Any, Any, Any]:
    value: Any = None
    error: BaseException | None = None
    try:
        while True:
            while (gate := process.gate()) is not None:
                try:
                    yield from _shielded(gate)
                except BaseException as thrown:
                    if process.buried:
                        return None
                    error = thrown  # a time-out or a cancellation that came while the process stood still
            try:
                if error is None:
                    waited = coroutine.send(value)
                else:
                    thrown, error = error, None
                    waited = coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            try:
                value = yield waited
            except BaseException as thrown:
                error = thrown
    finally:
        if process.buried:
            _discard(coroutine)


def _discard(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Free what a killed process left suspended: each `finally` that awaits is cut short in its turn."""
    for _ in range(100):
        try:
            coroutine.close()
        except RuntimeError:  # it awaited
            continue
        except BaseException:
            return
        return


def _shielded(gate: "asyncio.Future[None]") -> Generator[Any, Any, None]:
    # A cancelled task cancels what it waits for; others wait for the same gate.
    yield from asyncio.shield(gate).__await__()


def task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], context: Context | None = None
) -> "asyncio.Task[Any]":
    """Tasks belong to the process in whose context they are made."""
    process: SimProcess | None = (copy_context() if context is None else context).get(HERE)
    if process is None or process.buried:
        return NumberedTask(coroutine, loop=loop, context=context)
    return process.adopt(coroutine, context)
