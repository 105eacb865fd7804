"""Answers to users of whom this process holds nothing, as a shard in which they have rooms is away.

Their rooms in the other shards go on: each answer is read from the stores, and while there is none the stores are
looked at now and then, a few users at once, as there are no records to be woken by.

Spec: DESIGN.md section 11.
"""

import asyncio
from collections.abc import Callable

from services.sync.lazy_members import LazyMemory
from services.sync.snapshot import Snapshots
from services.sync.sync_request import SyncRequest
from tessera.clock import Clock
from tessera.http.errors import LimitExceeded

LOOK_SECONDS = 2.0
SIDE_BY_SIDE = 8
MAX_WAITING = 10_000


class UnloadedUsers:
    """Answers without a user's state."""

    def __init__(
        self, snapshots: Snapshots, memory: LazyMemory, clock: Clock, *, is_stopping: Callable[[], bool]
    ) -> None:
        self._snapshots = snapshots
        self._memory = memory
        self._clock = clock
        self._is_stopping = is_stopping
        self._places = asyncio.Semaphore(SIDE_BY_SIDE)
        self._waiting = 0

    async def answer(self, request: SyncRequest) -> bytes:
        """The answer to a request, after news or its time-out.

        Raises:
            DatabaseUnavailable: it cannot do without the shard (see `standing_still`).
            LimitExceeded: too many wait like this.
        """
        if self._waiting >= MAX_WAITING:
            raise LimitExceeded(2_000)
        self._waiting += 1
        try:
            return await self._answer(request)
        finally:
            self._waiting -= 1

    async def _answer(self, request: SyncRequest) -> bytes:
        deadline = self._clock.monotonic() + request.timeout_ms / 1000
        while True:
            async with self._places:
                answer = await self._snapshots.read(request)
            remaining = deadline - self._clock.monotonic()
            if not answer.is_empty or request.since is None or request.full_state or remaining <= 0:
                return answer.encode(self._memory, request)
            if self._is_stopping():
                return answer.encode(self._memory, request)
            request = request._replace(since=answer.token)
            await self._clock.sleep(min(LOOK_SECONDS, remaining))
