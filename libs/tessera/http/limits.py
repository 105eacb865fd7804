"""Rate limits: so many actions a second, with a burst, for each user, address or room.

Spec: C-S API §Rate limiting.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tessera.clock import Clock
from tessera.http.errors import LimitExceeded

MAX_KEYS = 100_000
# A limit of 0 per second never recovers; this is what its clients are told to wait.
_NEVER_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst_count` actions at once, then `per_second`."""

    per_second: float
    burst_count: int


class RateSetting(Protocol):
    """What a `Rate` looks like; the settings' own type fits as well."""

    @property
    def per_second(self) -> float:
        """Actions that come back each second."""
        ...

    @property
    def burst_count(self) -> int:
        """Actions that a full bucket holds."""
        ...


class RateLimits(Protocol):
    """Named limits, the names being the settings' paths: `rc_message`, `rc_login.address`.

    The decision is local and immediate, so that a request costs no round trip; a form for many
    processes may share its counts in the background.
    """

    def check(self, name: str, key: str, *, count: int = 1) -> None:
        """Note `count` actions of `key`.

        Raises:
            LimitExceeded: they are too many; then none is noted.
        """
        ...

    def require_capacity(self, name: str, key: str) -> None:
        """Raise LimitExceeded if one action would be too many, without noting it."""
        ...

    def note(self, name: str, key: str) -> None:
        """Note an action that has happened, even beyond the limit (a failed login)."""
        ...


class LocalRateLimits:
    """RateLimits in the memory of this process.

    Each key is one number: the moment at which its bucket is full again (the generic cell rate
    algorithm). A key whose moment is past is as good as absent, and of too many the least
    recently used go.
    """

    def __init__(self, clock: Clock, rates: Mapping[str, RateSetting], *, max_keys: int = MAX_KEYS) -> None:
        self._clock = clock
        self._rates = dict(rates)
        self._max_keys = max_keys
        self._full_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def check(self, name: str, key: str, *, count: int = 1) -> None:
        now = self._clock.monotonic()
        full_at = self._after(name, key, now, count)
        if full_at is not None:
            self._store(name, key, full_at)

    def require_capacity(self, name: str, key: str) -> None:
        self._after(name, key, self._clock.monotonic(), 1)

    def note(self, name: str, key: str) -> None:
        rate = self._rates.get(name)
        if rate is None or rate.per_second <= 0:
            return
        now = self._clock.monotonic()
        full_at = max(self._full_at.get((name, key), now), now) + 1 / rate.per_second
        # Not further than the limit itself, or a flood would lock its victim out for longer than the rate says.
        self._store(name, key, min(full_at, now + (rate.burst_count + 1) / rate.per_second))

    def learn(self, name: str, key: str, seconds: float) -> None:
        """Others have noted actions too: the bucket of `key` is full again in so many seconds, at the earliest."""
        now = self._clock.monotonic()
        if now + seconds > self._full_at.get((name, key), now):
            self._store(name, key, now + seconds)

    def __len__(self) -> int:
        return len(self._full_at)

    def _after(self, name: str, key: str, now: float, count: int) -> float | None:
        """The key's number after `count` more actions, None where nothing limits them."""
        rate = self._rates.get(name)
        if rate is None:
            return None
        if rate.per_second <= 0:
            raise LimitExceeded(_NEVER_MS)
        full_at = max(self._full_at.get((name, key), now), now) + count / rate.per_second
        # An action that is larger than the whole burst passes when the bucket is full, or it never could.
        burst_seconds = max(rate.burst_count, count) / rate.per_second
        excess = full_at - now - burst_seconds
        if excess > 1e-9:
            raise LimitExceeded(max(1, round(excess * 1000)))
        return full_at

    def _store(self, name: str, key: str, full_at: float) -> None:
        self._full_at[name, key] = full_at
        self._full_at.move_to_end((name, key))
        if len(self._full_at) > self._max_keys:
            self._full_at.popitem(last=False)
