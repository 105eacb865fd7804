"""How much each peer may ask of us at once (rc_federation), so that none keeps the others waiting.

Spec: none; Synapse's rc_federation has this meaning.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from matrixcore.identifiers import ServerName
from tessera.clock import Clock
from tessera.config.rate_limits import FederationLimits
from tessera.http.errors import LimitExceeded

MAX_IN_FLIGHT = 1_000  # of all peers
BUSY_MS = 2_000
SHORT_BODY_BYTES = 256 * 1024  # most transactions
MAX_LONG_BODIES, MAX_LONG_BODIES_EACH = 16, 4
MAX_PEERS = 5_000  # remembered, beside those that are being answered


class UnprovenBodies:
    """Bodies of requests that nobody has proven yet: long ones are few, so that strangers do not fill the memory."""

    def __init__(self) -> None:
        self._by_address: Counter[str] = Counter()

    @contextmanager
    def slot(self, address: str, length: int | None) -> Iterator[None]:
        """Room for a body.

        Args:
            address: where it comes from.
            length: in bytes; None if it is not known.

        Raises:
            LimitExceeded: too many long ones are there, from this address or in all.
        """
        if length is not None and length <= SHORT_BODY_BYTES:
            yield
            return
        if self._by_address[address] >= MAX_LONG_BODIES_EACH or self._by_address.total() >= MAX_LONG_BODIES:
            raise LimitExceeded(BUSY_MS)
        self._by_address[address] += 1
        try:
            yield
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


class _PeerState:
    __slots__ = ("recent", "slots", "waiting")

    def __init__(self, limits: FederationLimits) -> None:
        self.slots = asyncio.Semaphore(limits.concurrent)
        self.waiting = 0  # in flight as well
        self.recent: deque[float] = deque(maxlen=limits.sleep_limit)


class PeerLimits:
    """Counts the requests of each peer in this process. What nobody uses is forgotten."""

    def __init__(self, settings: FederationLimits, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._peers: dict[ServerName, _PeerState] = {}
        self._in_flight = 0

    @asynccontextmanager
    async def slot(self, origin: ServerName) -> AsyncIterator[None]:
        """A request of this peer: at once, after a while if it asks often, or not at all.

        Raises:
            LimitExceeded: too many of its requests wait, or too many of all peers.
        """
        limits = self._settings
        state = self._peers.get(origin)
        if state is None:
            state = self._add(origin)
        if state.waiting >= limits.reject_limit + limits.concurrent or self._in_flight >= MAX_IN_FLIGHT:
            raise LimitExceeded(BUSY_MS)
        state.waiting += 1
        self._in_flight += 1
        try:
            async with state.slots:
                await self._slow_down(state)
                yield
        finally:
            state.waiting -= 1
            self._in_flight -= 1

    def _add(self, origin: ServerName) -> _PeerState:
        if len(self._peers) >= MAX_PEERS:
            self._peers = {name: one for name, one in self._peers.items() if one.waiting or self._within_window(one)}
        state = self._peers[origin] = _PeerState(self._settings)
        return state

    async def _slow_down(self, state: _PeerState) -> None:
        if self._within_window(state) >= self._settings.sleep_limit:
            await self._clock.sleep(self._settings.sleep_delay / 1000)
        state.recent.append(self._clock.monotonic())

    def _within_window(self, state: _PeerState) -> int:
        since = self._clock.monotonic() - self._settings.window_size / 1000
        while state.recent and state.recent[0] <= since:
            state.recent.popleft()
        return len(state.recent)

    def __len__(self) -> int:
        return len(self._peers)
