"""What the topics cost and how far their readers are behind."""

from prometheus_client import Counter, Gauge, Histogram

ACKNOWLEDGED_SECONDS = Histogram(
    "tessera_bus_acknowledged_seconds",
    "From handing a record to the producer until all replicas in sync have it",
    ["topic"],
    buckets=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1, 5),
)
# A constant delay of half of fetch_max_wait with idle processors means that a produce does not wake a parked fetch.
ARRIVAL_SECONDS = Histogram(
    "tessera_bus_arrival_seconds",
    "From a record's timestamp to its arrival at a reader, of the oldest of a fetch",
    ["topic"],
    buckets=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1, 5, 30),
)
SENDS_FAILED = Counter("tessera_bus_sends_failed", "Records that were not acknowledged", ["topic", "reason"])
IN_FLIGHT = Gauge("tessera_bus_in_flight", "Records handed to the producer and not acknowledged", ["topic"])
UNDONE = Gauge(
    "tessera_bus_undone_commands",
    "Commands above the done offsets of the partitions read here, by group of partitions",
    ["partition_group"],
)
STOPPED = Gauge("tessera_bus_stopped_partitions", "Partitions stopped at a record of an unknown version", ["topic"])
MALFORMED = Counter("tessera_bus_malformed_records", "Records that are none of ours, left out", ["topic"])
READER_FAILURES = Counter("tessera_bus_reader_failures", "Readers that had to begin anew", ["topic"])
TOPICS_REPLACED = Counter("tessera_bus_topics_replaced", "Topics found made anew or cut short", ["topic"])
