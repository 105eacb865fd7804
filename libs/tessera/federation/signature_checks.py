"""Checking many signatures off the event loop.

A few are checked in threads (libsodium works without the interpreter's lock), many in processes, to which only what
is signed and the signatures go.
"""

import asyncio
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

from matrixcore.event_signing import SignedPart, check_signatures, signed_part
from matrixcore.events import Event
from matrixcore.identifiers import ServerName
from matrixcore.verdicts import Accepted

INLINE = 2  # events that are not worth handing over: a check takes about 0.1 ms
IN_PROCESSES = 400  # from so many on
CHUNK = 100
MAX_WORKERS = 4
IDLE_SECONDS = 60.0  # a process takes 30 MiB

Keys = Mapping[ServerName, Mapping[str, bytes]]


class SignedEvent(NamedTuple):
    """An event with the keys that count for it."""

    event: Event
    keys: Keys


class SignatureChecker:
    """The threads and processes of one process; close it at the end. Nothing is started before it is needed."""

    def __init__(self) -> None:
        self._workers = max(1, min(os.cpu_count() or 1, MAX_WORKERS))
        self._threads: ThreadPoolExecutor | None = None
        self._processes: ProcessPoolExecutor | None = None
        self._under_way = 0
        self._idle: asyncio.TimerHandle | None = None

    async def check(self, events: Sequence[SignedEvent]) -> list[str | None]:
        """What is wrong with the signatures of each event; None if nothing is."""
        if len(events) <= INLINE:
            return check_here(events)
        if len(events) < IN_PROCESSES:
            return await self.check_in_threads(events)
        try:
            return await self.check_in_processes(events)
        except BrokenProcessPool:  # somebody ended a worker; it is started again when it is needed again
            self._processes = None
            return await self.check_in_threads(events)

    def close(self) -> None:
        """End the threads and processes."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._end_processes()

    def _end_processes(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if self._processes is not None:
            self._processes.shutdown(wait=False, cancel_futures=True)
        self._processes = self._idle = None

    async def check_in_threads(self, events: Sequence[SignedEvent]) -> list[str | None]:
        """`check` in any case in threads: one core's worth of Python, and libsodium beside it."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="signatures")
        size = max(1, min(CHUNK, -(-len(events) // self._workers)))
        loop, threads = asyncio.get_running_loop(), self._threads
        parts = [
            loop.run_in_executor(threads, check_here, events[start : start + size])
            for start in range(0, len(events), size)
        ]
        return [verdict for part in await asyncio.gather(*parts) for verdict in part]

    async def check_in_processes(self, events: Sequence[SignedEvent]) -> list[str | None]:
        """`check` in any case in processes, which end when they have had nothing to do for a while.

        Raises:
            BrokenProcessPool: one of them was killed.
        """
        if self._idle is not None:
            self._idle.cancel()
        self._under_way += 1
        try:
            return await self._check_in_waves(events)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_processes)

    async def _check_in_waves(self, events: Sequence[SignedEvent]) -> list[str | None]:
        if self._processes is None:
            # Not forked: this process has threads and connections.
            context = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(self._workers, mp_context=context)
        loop, processes = asyncio.get_running_loop(), self._processes
        verdicts: list[str | None] = []
        # In waves, so that not all events exist twice.
        wave = CHUNK * self._workers * 2
        for begin in range(0, len(events), wave):
            end = min(begin + wave, len(events))
            with _without_main_program():  # the first task begins the processes
                parts = [
                    loop.run_in_executor(processes, _check_parts, _parts_of(events[start : min(start + CHUNK, end)]))
                    for start in range(begin, end, CHUNK)
                ]
            for part in await asyncio.gather(*parts):
                verdicts.extend(part)
        return verdicts


@contextmanager
def _without_main_program() -> Iterator[None]:
    """Processes begun meanwhile do not import the program that this one runs.

    A spawned process does so before anything else, in case a task is defined there. All services would take it seven
    times as long as what it needs, and twice the memory.
    """
    main = sys.modules["__main__"]
    kept: dict[str, Any] = {name: vars(main).pop(name) for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(kept)


def check_here(events: Sequence[SignedEvent]) -> list[str | None]:
    """What is wrong with the signatures of each event, found out where it is asked."""
    return _check_parts(_parts_of(events))


def _parts_of(events: Sequence[SignedEvent]) -> list[tuple[SignedPart, Keys]]:
    return [(signed_part(one.event), one.keys) for one in events]


def _check_parts(parts: Sequence[tuple[SignedPart, Keys]]) -> list[str | None]:
    verdicts = [check_signatures(part, keys) for part, keys in parts]
    return [None if isinstance(verdict, Accepted) else verdict.reason for verdict in verdicts]
