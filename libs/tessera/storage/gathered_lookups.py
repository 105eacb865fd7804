"""Look-ups by key that share queries: what is asked while a query runs goes into the next one.

Nothing is remembered. A query begins after all that it answers was asked, so that everybody sees what was
committed before the own question, as with a query apart. A lone look-up waits for nobody.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from tessera.storage.database import DatabaseUnavailable

MAX_KEYS = 100  # of one query
MAX_WAITING = 5_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class GatheredLookups(Generic[K, V]):
    """Finds values by key, one query at a time.

    Args:
        find: answers those of the keys that exist. At most `max_keys` come at once, no key twice.
    """

    def __init__(
        self,
        find: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        max_keys: int = MAX_KEYS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._find = find
        self._max_keys = max_keys
        self._max_waiting = max_waiting
        self._waiting: list[tuple[K, asyncio.Future[V | None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def find(self, key: K) -> V | None:
        """The value of a key; None if there is none.

        Raises:
            DatabaseUnavailable: too many are waiting.
            Exception: what the query raised.
        """
        if len(self._waiting) >= self._max_waiting:
            raise DatabaseUnavailable("too many are waiting for the same kind of query")
        answer: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, answer))
        if self._running is None:
            # A task of its own, since whoever asks may go away while others wait for the same query.
            self._running = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        batch: list[tuple[K, asyncio.Future[V | None]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._max_keys], self._waiting[self._max_keys :]
                await self._answer(batch)
        finally:
            self._running = None
            # Only where the loop is closing is anybody left.
            for _, answer in (*batch, *self._waiting):
                answer.cancel()

    async def _answer(self, batch: list[tuple[K, asyncio.Future[V | None]]]) -> None:
        try:
            keys = dict.fromkeys(key for key, answer in batch if not answer.done())
            found = await self._find(list(keys)) if keys else {}
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for key, answer in batch:
                if not answer.done():
                    answer.set_result(found.get(key))
