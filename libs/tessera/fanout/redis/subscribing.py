"""The receiving end: one connection for all subscriptions of a process.

Changes of what is subscribed gather and go out together; a PING behind them comes back when they are in force. A
silent connection is pinged, and taken for dead when that brings nothing. After a reconnect everything is subscribed
again, then `on_up` is called, and only then do messages pass.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import aclosing, suppress

import structlog

from tessera.clock import Clock
from tessera.fanout.redis import metrics
from tessera.fanout.redis.connecting import BackOff, Connector, Link, RedisUnavailable, links, pack
from tessera.ids import IdSource

log = structlog.get_logger(__name__)

CHANNELS_PER_COMMAND = 500
PING_SECONDS = 1.0
SILENCE_SECONDS = 3.0
MESSAGES_PER_TURN = 64  # then the event loop's other work has its turn


class Hub:
    """The channels that this process hears.

    Args:
        on_message: (channel, payload); must not raise.
        on_up: everything wanted is in force, after a time when it was not.
        on_down: messages do not come from now on.
    """

    def __init__(
        self,
        connector: Connector,
        clock: Clock,
        ids: IdSource,
        name: str,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
    ) -> None:
        self._connector = connector
        self._name = name
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._back_off = BackOff(clock, ids)
        self._wanted: set[bytes] = set()
        self._sent: set[bytes] = set()
        self._changed: set[bytes] = set()
        self._has_changed = asyncio.Event()
        self._link: Link | None = None
        self._is_up = False
        self._pings = 0  # the last one sent, or about to be behind the changes that go out now
        self._returned = 0
        self._first_ping = 0  # of this connection: everything is in force when it comes back
        self._heard = 0.0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._first_attempt = asyncio.Event()
        metrics.CONNECTED.labels("subscribe").set(0)

    @property
    def is_up(self) -> bool:
        """Whether messages come."""
        return self._is_up

    async def wait_for_first_attempt(self) -> None:
        """Return when the first connection is in force, or could not be opened."""
        await self._first_attempt.wait()

    def add(self, channels: Iterable[bytes]) -> None:
        """Subscribe; `in_force` waits for it."""
        for channel in channels:
            if channel not in self._wanted:
                self._wanted.add(channel)
                self._change(channel)

    def remove(self, channels: Iterable[bytes]) -> None:
        """Unsubscribe; a message that is on its way may still come."""
        for channel in channels:
            if channel in self._wanted:
                self._wanted.discard(channel)
                self._change(channel)

    async def in_force(self) -> None:
        """Return when every `add` up to now is in force, or will be before `on_up` is called."""
        # The next ping covers what waits to be sent, the last one what has been.
        ping = self._pings + (1 if self._changed else 0)
        if self._link is None or ping <= self._returned:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((ping, done))
        await done

    async def run(self) -> None:
        """Run for ever: connect, subscribe, listen, and connect again."""
        opened = links(self._connector, self._name, self._back_off, self._first_attempt)
        async with aclosing(opened):
            async for link in opened:
                self._link = link
                try:
                    await self._serve(link)
                except RedisUnavailable as error:
                    log.warning("no hints come until Redis is back", error=str(error))
                except Exception:  # nobody foresaw it, but hints must not end for it
                    log.exception("listening failed")
                finally:
                    self._link = None
                    self._go_down()
                    await link.close()
                metrics.OUTAGES.labels("subscribe").inc()
                self._first_attempt.set()

    def _change(self, channel: bytes) -> None:
        if self._link is not None:
            self._changed.add(channel)
            self._has_changed.set()

    async def _serve(self, link: Link) -> None:
        self._sent = set(self._wanted)
        self._changed.clear()
        self._has_changed.clear()
        self._heard = asyncio.get_running_loop().time()
        self._pings += 1
        self._first_ping = self._pings
        tasks = [asyncio.create_task(self._write(link)), asyncio.create_task(self._read(link))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError, RedisUnavailable):
                    await task

    async def _write(self, link: Link) -> None:
        await self._subscribe(link, "SUBSCRIBE", self._sent)
        await self._ping(link)
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self._has_changed.wait()
            except TimeoutError:
                if loop.time() - self._heard < PING_SECONDS:
                    continue
            silence = loop.time() - self._heard
            if silence > SILENCE_SECONDS:
                raise RedisUnavailable(f"silent for {silence:.1f} s")
            self._has_changed.clear()
            changed, self._changed = self._changed, set()
            self._pings += 1
            added = [channel for channel in changed if channel in self._wanted and channel not in self._sent]
            removed = [channel for channel in changed if channel not in self._wanted and channel in self._sent]
            self._sent.update(added)
            self._sent.difference_update(removed)
            await self._subscribe(link, "UNSUBSCRIBE", removed)
            await self._subscribe(link, "SUBSCRIBE", added)
            await self._ping(link)

    async def _subscribe(self, link: Link, command: str, channels: Collection[bytes]) -> None:
        names = list(channels)
        for start in range(0, len(names), CHANNELS_PER_COMMAND):
            await self._send(link, [pack(command, *names[start : start + CHANNELS_PER_COMMAND])])

    async def _ping(self, link: Link) -> None:
        await self._send(link, [pack("PING", self._pings)])

    async def _send(self, link: Link, packed: Sequence[bytes]) -> None:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await link.write(packed)
        except TimeoutError as error:
            raise RedisUnavailable("does not take commands") from error

    async def _read(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        count = 0
        while True:
            reply = await link.read()
            self._heard = loop.time()
            if not isinstance(reply, list):
                # An error, such as that the user may not subscribe; or the pong of a connection without channels.
                if not isinstance(reply, bytes):
                    raise RedisUnavailable(str(reply))
                self._come_back(int(reply))
            elif reply[0] == b"message":
                if self._is_up:
                    self._on_message(reply[1], reply[2])
            elif reply[0] == b"pong":
                self._come_back(int(reply[1]))
            count += 1
            if count % MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    def _come_back(self, ping: int) -> None:
        """A ping has come back: what was sent before it is in force."""
        if not self._is_up and ping >= self._first_ping:
            self._is_up = True
            metrics.CONNECTED.labels("subscribe").set(1)
            self._back_off.reset()
            log.info("hints come", channels=len(self._sent))
            self._on_up()
            self._first_attempt.set()
        self._returned = ping
        while self._waiting and self._waiting[0][0] <= ping:
            _release(self._waiting.popleft()[1])

    def _go_down(self) -> None:
        self._changed.clear()
        self._returned = self._pings
        if self._is_up:
            self._is_up = False
            metrics.CONNECTED.labels("subscribe").set(0)
            self._on_down()
        # Whoever waits need not: all that is wanted will be in force before `on_up`.
        while self._waiting:
            _release(self._waiting.popleft()[1])


def _release(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)
