"""What the sync service tells Prometheus."""

from prometheus_client import Counter, Gauge

from tessera.figures import Spreads, Tallies

_ANSWERS = Tallies("tessera_sync_answers_total", "Sync answers by where they came from", ["path"])
ANSWERS_FROM_MEMORY = _ANSWERS.labels("memory")
ANSWERS_FROM_DATABASE = _ANSWERS.labels("database")
SLIDING_ANSWERS = _ANSWERS.labels("sliding")
HOLES = Counter("tessera_sync_holes_total", "Batches of a partition channel that did not follow the last one")
TOKENS_AHEAD = Counter(
    "tessera_sync_tokens_ahead", "Tokens that say more than PostgreSQL: it was restored, or lost commits", ["stream"]
)
for _stream in ("partition", "user", "devices"):  # from the beginning, so that the first one shows as an increase
    TOKENS_AHEAD.labels(_stream)
PARKED = Tallies("tessera_sync_parked", "Requests that wait for news", kind="gauge").labels()
WAKES = Tallies("tessera_sync_wakes_total", "Waiting requests that were woken").labels()
USERS = Gauge("tessera_sync_users", "Users whose state is kept in memory")
TAIL_BYTES = Gauge("tessera_sync_tail_bytes", "Memory that the tails of rooms take, about")
DELIVERY = Spreads(
    "tessera_delivery_seconds",
    "From the acceptance of a local event by a gateway to the answer that brings it to a request that was waiting",
    ["partition_group"],
    buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
WAKE_SECONDS = Spreads(
    "tessera_sync_wake_seconds",
    "From the arrival of a record to the answer of a request that it woke",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
).labels()
