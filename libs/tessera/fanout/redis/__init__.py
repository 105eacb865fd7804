"""The fan-out of a cluster, over Redis or Valkey."""

from tessera.fanout.redis.connecting import RedisUnavailable
from tessera.fanout.redis.fanout import RedisFanout, RedisSubscription, open_fanout

__all__ = ["RedisFanout", "RedisSubscription", "RedisUnavailable", "open_fanout"]
