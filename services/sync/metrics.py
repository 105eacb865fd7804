"""What the sync service tells Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

ANSWERS = Counter("tessera_sync_answers_total", "Sync answers by where they came from", ["path"])
HOLES = Counter("tessera_sync_holes_total", "Batches of a partition channel that did not follow the last one")
PARKED = Gauge("tessera_sync_parked", "Requests that wait for news")
WAKES = Counter("tessera_sync_wakes_total", "Waiting requests that were woken")
USERS = Gauge("tessera_sync_users", "Users whose state is kept in memory")
TAIL_BYTES = Gauge("tessera_sync_tail_bytes", "Memory that the tails of rooms take, about")
DELIVERY = Histogram(
    "tessera_delivery_seconds",
    "From the acceptance of a local event by a gateway to the answer that brings it to a request that was waiting",
    ["partition_group"],
    buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
WAKE_SECONDS = Histogram(
    "tessera_sync_wake_seconds",
    "From the arrival of a record to the answer of a request that it woke",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
)
