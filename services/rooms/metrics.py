"""What the room writers measure: a few observations for a batch, none for a command.

What is told of each partition is added up over groups of partitions (`tessera.partition_groups`).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tessera.partition_groups import PARTITION_GROUPS, partition_group

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
RECEIVED = Counter(
    "tessera_writer_received_events", "Events of other servers by what their rooms say of them", ["verdict"]
)
VERDICTS = ("accepted", "soft_failed", "rejected", "outlier", "parked", "unsigned")
for _verdict in VERDICTS:
    RECEIVED.labels(_verdict)
RETRIES = Counter("tessera_writer_retries", "Batches built again", ["reason"])
PARTITIONS = Gauge("tessera_writer_partitions", "Partitions owned", ["shard"])
PARTITIONS_IN_ALL = Gauge("tessera_partitions", "Partitions of the database, whoever owns them")
TAKEN = Counter("tessera_writer_partitions_taken", "Partitions taken, by how their last owner ended", ["end"])
LOST = Counter("tessera_writer_partitions_lost", "Partitions lost", ["reason"])
# At 0 from the beginning: Prometheus sees no increase where there was nothing.
for _reason in ("attempts", "begin", "fenced", "lease", "no progress", "topic", "unknown commit"):
    LOST.labels(_reason)
REWOUND = Counter("tessera_writer_partitions_rewound", "Partitions whose database was behind the log when taken")
DEAD_LETTERS = Counter("tessera_writer_dead_letters", "Commands that became dead letters")
HOT_ROOMS_BYTES = Gauge("tessera_writer_hot_rooms_bytes", "Memory of hot rooms, about", ["shard"])


class PartitionLag(NamedTuple):
    """How far a partition is behind."""

    partition: int
    undone: int  # commands taken and without an outcome
    unannounced: int  # records committed and not announced


LagSource = Callable[[], Iterable[PartitionLag]]


class LagCollector(Collector):
    """The lag of the partitions written here, counted when Prometheus asks: it costs a batch nothing.

    Attributes:
        sources: the writers in this process, each a function that answers the lags of its partitions.
    """

    def __init__(self) -> None:
        self.sources: set[LagSource] = set()

    def describe(self) -> Iterator[Metric]:
        """What `collect` tells, without figures."""
        yield from self._families()

    def collect(self) -> Iterator[Metric]:
        """The sum for each group of partitions."""
        undone, unannounced = [0] * PARTITION_GROUPS, [0] * PARTITION_GROUPS
        owned: set[int] = set()
        for lag in chain.from_iterable(source() for source in tuple(self.sources)):
            group = lag.partition % PARTITION_GROUPS
            owned.add(group)
            undone[group] += lag.undone
            unannounced[group] += lag.unannounced
        commands, records = self._families()
        for group in sorted(owned):
            commands.add_metric([partition_group(group)], undone[group])
            records.add_metric([partition_group(group)], unannounced[group])
        yield commands
        yield records

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "tessera_writer_undone_commands",
                "Commands taken and without an outcome, by group of partitions",
                labels=["partition_group"],
            ),
            GaugeMetricFamily(
                "tessera_writer_unannounced_records",
                "Records committed and not announced to room.log, by group of partitions",
                labels=["partition_group"],
            ),
        )


LAGS = LagCollector()
REGISTRY.register(LAGS)
