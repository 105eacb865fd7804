"""The partitioned topics between services: Kafka in a cluster, queues in one process."""

from tessera.bus.local import LocalCommandBus, LocalRecordBus
from tessera.bus.protocol import (
    BusBusy,
    BusUnavailable,
    CommandBus,
    CommandReader,
    Delivered,
    RecordBus,
    RecordReader,
    TopicReplaced,
)
from tessera.bus.shared_records import SharedRecords

__all__ = [
    "BusBusy",
    "BusUnavailable",
    "CommandBus",
    "CommandReader",
    "Delivered",
    "LocalCommandBus",
    "LocalRecordBus",
    "RecordBus",
    "RecordReader",
    "SharedRecords",
    "TopicReplaced",
]
