"""The fan-out of a cluster, over Redis or Valkey."""

from tessera.fanout.redis.connecting import RedisUnavailable
from tessera.fanout.redis.fanout import RedisFanout, RedisSubscription, open_fanout
from tessera.fanout.redis.rate_limits import RedisRateLimits, open_rate_limits

__all__ = [
    "RedisFanout",
    "RedisRateLimits",
    "RedisSubscription",
    "RedisUnavailable",
    "open_fanout",
    "open_rate_limits",
]
