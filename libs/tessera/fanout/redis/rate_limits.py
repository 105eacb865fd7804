"""Rate limits that the processes of a cluster share.

Each process decides by its own numbers, at once; what it noted goes to Redis in the background, many keys in one call,
and what the others noted comes back with the answer. So a request never waits, a Redis that is away leaves each
process with its own limits, and while it is there the processes agree after about 50 ms.

Spec: C-S API §Rate limiting.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from hashlib import sha1, sha256

import structlog
from redis.exceptions import ResponseError

from tessera.clock import Clock
from tessera.fanout.redis import metrics
from tessera.fanout.redis.connecting import RedisUnavailable, pack
from tessera.fanout.redis.fanout import RedisFanout
from tessera.fanout.redis.publishing import Publisher
from tessera.http.limits import LocalRateLimits, RateSetting

log = structlog.get_logger(__name__)

SHARE_SECONDS = 0.05  # actions gather so long before they are told
MAX_PENDING = 10_000  # keys; beyond, the oldest stay this process's own knowledge
MAX_KEYS_PER_CALL = 500

# For each key the moment, on Redis's clock, at which its bucket is full again (the generic cell rate algorithm).
# ARGV: for each key what the actions cost, and how far ahead the moment may be, both in microseconds.
_SCRIPT = b"""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local left = {}
for i, key in ipairs(KEYS) do
  local full = math.max(tonumber(redis.call('GET', key) or '0') or 0, now) + tonumber(ARGV[2 * i - 1])
  full = math.min(full, now + tonumber(ARGV[2 * i]))
  redis.call('SET', key, string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
  left[i] = string.format('%.0f', full - now)
end
return left
"""
_SHA1 = sha1(_SCRIPT, usedforsecurity=False).hexdigest()  # by which Redis knows a script


class RedisRateLimits:
    """`tessera.http.limits.RateLimits` of a cluster; made by `open_rate_limits`."""

    def __init__(self, publisher: Publisher, key_prefix: str, rates: Mapping[str, RateSetting], clock: Clock) -> None:
        self._publisher = publisher
        self._prefix = f"{key_prefix}limit:"
        self._rates = dict(rates)
        self._clock = clock
        self._local = LocalRateLimits(clock, rates)
        # (name, key) -> how many actions in all, and the most at once
        self._pending: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        self._has_pending = asyncio.Event()

    def check(self, name: str, key: str, *, count: int = 1) -> None:
        """Note `count` actions of `key`.

        Raises:
            LimitExceeded: they are too many; then none is noted.
        """
        self._local.check(name, key, count=count)
        self._tell(name, key, count)

    def require_capacity(self, name: str, key: str) -> None:
        """Raise LimitExceeded if one action would be too many, without noting it."""
        self._local.require_capacity(name, key)

    def note(self, name: str, key: str) -> None:
        """Note an action that has happened, even beyond the limit."""
        self._local.note(name, key)
        self._tell(name, key, 1)

    async def run(self) -> None:
        """Run for ever: tell Redis what was noted here, and learn what was noted elsewhere."""
        while True:
            await self._has_pending.wait()
            await self._clock.sleep(SHARE_SECONDS)
            await self.share()
            if not self._pending:
                self._has_pending.clear()

    async def share(self) -> None:
        """Tell what is pending, up to a bound, in one call. Without Redis it stays this process's own knowledge."""
        keys = list(self._pending)[:MAX_KEYS_PER_CALL]
        counts = [self._pending.pop(key) for key in keys]
        if not keys:
            return
        arguments: list[int] = []
        for (name, _), (count, largest) in zip(keys, counts, strict=True):
            rate = self._rates[name]
            arguments.append(max(1, round(count / rate.per_second * 1e6)))
            # Not further than the limit itself, as it is locally.
            arguments.append(max(1, round(max(rate.burst_count + 1, largest) / rate.per_second * 1e6)))
        try:
            left = await self._call([self._redis_key(*key) for key in keys], arguments)
        except RedisUnavailable:
            metrics.SHARED_LIMITS.labels("dropped").inc(len(keys))
            return
        metrics.SHARED_LIMITS.labels("shared").inc(len(keys))
        for (name, key), microseconds in zip(keys, left, strict=True):
            # What came meanwhile is not in the answer.
            later = self._pending.get((name, key), (0, 0))[0] / self._rates[name].per_second
            self._local.learn(name, key, int(microseconds) / 1e6 + later)

    async def _call(self, keys: list[str], arguments: list[int]) -> list[bytes]:
        (reply,) = await self._publisher.call([pack("EVALSHA", _SHA1, len(keys), *keys, *arguments)])
        if isinstance(reply, ResponseError):  # a server that has just started does not know the script
            (reply,) = await self._publisher.call([pack("EVAL", _SCRIPT, len(keys), *keys, *arguments)])
        if not isinstance(reply, list):
            log.error("Redis refuses to share rate limits", error=str(reply))
            raise RedisUnavailable(str(reply))
        return reply

    def _tell(self, name: str, key: str, count: int) -> None:
        rate = self._rates.get(name)
        if rate is None or rate.per_second <= 0:
            return
        pending, largest = self._pending.get((name, key), (0, 0))
        self._pending[name, key] = (pending + count, max(largest, count))
        if len(self._pending) > MAX_PENDING:
            self._pending.popitem(last=False)
        self._has_pending.set()

    def _redis_key(self, name: str, key: str) -> str:
        # Of bounded length, and no list of names and addresses for whoever looks into Redis.
        return f"{self._prefix}{name}:{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


@asynccontextmanager
async def open_rate_limits(
    fanout: RedisFanout, rates: Mapping[str, RateSetting], clock: Clock
) -> AsyncIterator[RedisRateLimits]:
    """Limits shared over the fan-out's Redis, for as long as the block runs."""
    limits = RedisRateLimits(fanout.publisher, fanout.key_prefix, rates, clock)
    sharing = asyncio.create_task(limits.run(), name="rate limits")
    try:
        yield limits
    finally:
        sharing.cancel()
        with suppress(asyncio.CancelledError):
            await sharing
