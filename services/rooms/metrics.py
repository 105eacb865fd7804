"""What the room writers measure: one observation for a batch, none for a command."""

from prometheus_client import Counter, Gauge, Histogram

BATCH_COMMANDS = Histogram(
    "tessera_writer_batch_commands", "Commands in a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
BUILD_SECONDS = Histogram(
    "tessera_writer_build_seconds",
    "Building a batch",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
)
COMMIT_SECONDS = Histogram(
    "tessera_writer_commit_seconds", "Committing a batch", buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2)
)
LAG_SECONDS = Histogram(
    "tessera_writer_lag_seconds",
    "From a command's origin_server_ts to its commit, of the oldest in a batch",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30),
)
RECORDS = Counter("tessera_writer_records", "Records committed")
RETRIES = Counter("tessera_writer_retries", "Batches built again", ["reason"])
PARTITIONS = Gauge("tessera_writer_partitions", "Partitions owned", ["shard"])
LOST = Counter("tessera_writer_partitions_lost", "Partitions lost", ["reason"])
DEAD_LETTERS = Counter("tessera_writer_dead_letters", "Commands that became dead letters")
HOT_ROOMS_BYTES = Gauge("tessera_writer_hot_rooms_bytes", "Memory of hot rooms, about", ["shard"])
NOT_ANNOUNCED = Gauge("tessera_writer_not_announced", "Records committed and not announced", ["shard"])
