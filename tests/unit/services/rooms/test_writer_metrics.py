from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from services.rooms.metrics import LagCollector, PartitionLag


def test_lags_are_added_up_over_groups_of_partitions() -> None:
    registry = CollectorRegistry()
    collector = LagCollector()
    registry.register(collector)

    def first() -> Iterable[PartitionLag]:
        return [PartitionLag(1, undone=2, unannounced=0), PartitionLag(17, undone=3, unannounced=5)]

    def second() -> Iterable[PartitionLag]:
        return [PartitionLag(33, undone=1, unannounced=0), PartitionLag(0, undone=0, unannounced=0)]

    collector.sources |= {first, second}
    undone = "tessera_writer_undone_commands"
    assert registry.get_sample_value(undone, {"partition_group": "01"}) == 6
    assert registry.get_sample_value(undone, {"partition_group": "00"}) == 0
    assert registry.get_sample_value("tessera_writer_unannounced_records", {"partition_group": "01"}) == 5
    assert registry.get_sample_value(undone, {"partition_group": "02"}) is None, "nothing there is owned here"


def test_any_number_of_partitions_makes_sixteen_series() -> None:
    registry = CollectorRegistry()
    collector = LagCollector()
    registry.register(collector)
    collector.sources.add(lambda: [PartitionLag(partition, 1, 1) for partition in range(4096)])
    for family in registry.collect():
        assert len(family.samples) == 16
        assert {sample.value for sample in family.samples} == {256}
