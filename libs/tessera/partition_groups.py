"""Groups of partitions, by which metrics are told: the number of series does not follow that of the partitions."""

PARTITION_GROUPS = 16


def partition_group(partition: int) -> str:
    """The label `partition_group` of a partition: "00" to "15"."""
    return f"{partition % PARTITION_GROUPS:02}"
