"""What the fan-out over Redis measures."""

from prometheus_client import Counter, Gauge

CONNECTED = Gauge("tessera_fanout_connected", "Whether the connection to Redis is up", ["connection"])
OUTAGES = Counter("tessera_fanout_outages", "Times that a connection to Redis was lost", ["connection"])
DROPPED = Counter(
    "tessera_fanout_dropped", "Hints given up: Redis was away, or too slow, or the queue full", ["reason"]
)
UNREADABLE = Counter("tessera_fanout_unreadable", "Messages that could not be read")
SHARED_LIMITS = Counter("tessera_fanout_shared_limits", "Rate limits told to Redis", ["result"])
