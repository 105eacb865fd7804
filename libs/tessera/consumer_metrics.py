"""What the consumers of room.log measure."""

from prometheus_client import Counter, Gauge

RECORDS = Counter(
    "tessera_consumer_records", "Records taken, whether or not they mean anything to the step", ["consumer"]
)
LAG = Gauge(
    "tessera_consumer_lag_records",
    "Records behind the heads in PostgreSQL, over the partitions that the process has, when last compared",
    ["consumer"],
)
PARTITIONS = Gauge("tessera_consumer_partitions", "Partitions that the process consumes", ["consumer"])
PAUSES = Counter("tessera_consumer_pauses", "Times that a consumer waited for a store or a topic", ["consumer"])
LEFT_OUT = Counter("tessera_consumer_rooms_left_out", "Rooms marked stale because a step failed for them", ["consumer"])
