"""The sending end: one connection, on which everything that waits goes out in one round trip.

Publishers put packed commands into a bounded queue. While one round trip is on its way the next gathers, without a
timer. When Redis does not answer in time the circuit opens: what waits is dropped, and so is everything after it, at
once, until a connection is there again.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ResponseError

from tessera.clock import Clock
from tessera.fanout.redis import metrics
from tessera.fanout.redis.connecting import BackOff, Connector, Link, RedisUnavailable, links, pack
from tessera.ids import IdSource

log = structlog.get_logger(__name__)

MAX_QUEUED_BYTES = 16 << 20
MAX_ROUND_BYTES = 1 << 20
IDLE_SECONDS = 5.0  # so often a quiet connection is tried, so that a hint need not find out that it is dead
_PING = pack("PING")


@dataclass(slots=True)
class _Entry:
    packed: bytes
    replies: int
    done: "asyncio.Future[list[Any]] | None"


class Publisher:
    """Sends commands while Redis is there.

    Args:
        timeout_seconds: for one round trip.
    """

    def __init__(self, connector: Connector, clock: Clock, ids: IdSource, name: str, timeout_seconds: float) -> None:
        self._connector = connector
        self._name = name
        self._timeout = timeout_seconds
        self._back_off = BackOff(clock, ids)
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._is_up = False
        self._first_attempt = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.CONNECTED.labels("publish").set(0)

    @property
    def is_up(self) -> bool:
        """Whether commands go out now."""
        return self._is_up

    async def wait_for_first_attempt(self) -> None:
        """Return when the first connection is open, or could not be opened."""
        await self._first_attempt.wait()

    def post(self, packed: Sequence[bytes]) -> None:
        """Send commands without waiting for anything."""
        self._put(packed, None)

    async def send(self, packed: Sequence[bytes]) -> bool:
        """Send commands and wait until Redis has them; False if that is not known."""
        try:
            await self.call(packed)
        except RedisUnavailable:
            return False
        return True

    async def call(self, packed: Sequence[bytes]) -> list[Any]:
        """Send commands; their replies, a refusal as a ResponseError among them.

        Raises:
            RedisUnavailable: they may have been executed or not.
        """
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        if not self._put(packed, done):
            raise RedisUnavailable("not connected")
        return await done

    async def flush(self) -> None:
        """Return when nothing waits any more."""
        await self._idle.wait()

    async def run(self) -> None:
        """Run for ever: connect, send what waits, and connect again."""
        opened = links(self._connector, self._name, self._back_off, self._first_attempt)
        async with aclosing(opened):
            async for link in opened:
                self._is_up = True
                metrics.CONNECTED.labels("publish").set(1)
                self._first_attempt.set()
                try:
                    await self._work(link)
                except RedisUnavailable as error:
                    log.warning("hints are not published until Redis is back", error=str(error))
                except Exception:  # nobody foresaw it, but hints must not end for it
                    log.exception("publishing failed")
                finally:
                    self._is_up = False
                    metrics.CONNECTED.labels("publish").set(0)
                    self._drop_all()
                    await link.close()
                metrics.OUTAGES.labels("publish").inc()

    def _put(self, packed: Sequence[bytes], done: "asyncio.Future[list[Any]] | None") -> bool:
        data = packed[0] if len(packed) == 1 else b"".join(packed)
        if not self._is_up or self._queued_bytes + len(data) > MAX_QUEUED_BYTES:
            metrics.DROPPED.labels("overflow" if self._is_up else "down").inc(len(packed))
            return False
        self._queue.append(_Entry(data, len(packed), done))
        self._queued_bytes += len(data)
        self._idle.clear()
        self._wake.set()
        return True

    async def _work(self, link: Link) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                self._put([_PING], None)
            self._wake.clear()
            while self._queue:
                await self._round(link)
                self._back_off.reset()
            self._idle.set()

    async def _round(self, link: Link) -> None:
        """Write what waits, up to a bound, and read the replies."""
        entries: list[_Entry] = []
        size = 0
        while self._queue and (not entries or size + len(self._queue[0].packed) <= MAX_ROUND_BYTES):
            entry = self._queue.popleft()
            size += len(entry.packed)
            entries.append(entry)
        self._queued_bytes -= size
        answered = 0
        try:
            async with asyncio.timeout(self._timeout):
                await link.write([entry.packed for entry in entries])
                for entry in entries:
                    replies = [await link.read() for _ in range(entry.replies)]
                    _settle(entry, replies)
                    answered += 1
        except TimeoutError as error:
            raise RedisUnavailable(f"no answer within {self._timeout} s") from error
        finally:
            _give_up(entries[answered:], "timeout")

    def _drop_all(self) -> None:
        entries, self._queue, self._queued_bytes = list(self._queue), deque(), 0
        _give_up(entries, "down")
        self._idle.set()


def _settle(entry: _Entry, replies: list[Any]) -> None:
    if entry.done is None:
        refused = [reply for reply in replies if isinstance(reply, ResponseError)]
        if refused:
            metrics.DROPPED.labels("refused").inc(len(refused))
            log.error("Redis refuses to publish", error=str(refused[0]))
    elif not entry.done.done():
        entry.done.set_result(replies)


def _give_up(entries: Sequence[_Entry], reason: str) -> None:
    for entry in entries:
        metrics.DROPPED.labels(reason).inc(entry.replies)
        if entry.done is not None and not entry.done.done():
            entry.done.set_exception(RedisUnavailable("given up"))
            entry.done.exception()  # retrieved: whoever asked may have gone
