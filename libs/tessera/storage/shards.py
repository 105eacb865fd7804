"""Which database a room lies in: partition by a stable hash, shard by placement (DESIGN section 2.8)."""

from collections.abc import Iterable, Mapping

from matrixcore.identifiers import RoomId
from tessera.commands import partition_of
from tessera.storage.database import Database


class RoomShards:
    """The room databases by partition.

    `placement` gives each of the `partitions` partitions the name of its shard; it is data of the
    account store, YAML only names the databases.
    """

    def __init__(self, databases: Mapping[str, Database], placement: Mapping[int, str], partitions: int) -> None:
        self.databases = dict(databases)
        self.partitions = partitions
        self._placement = dict(placement)

    @property
    def names(self) -> tuple[str, ...]:
        """The shards' names."""
        return tuple(self.databases)

    def partition_of(self, room_id: RoomId) -> int:
        """The partition of a room."""
        return partition_of(room_id, self.partitions)

    def shard_of(self, partition: int) -> str:
        """The name of the shard in which a partition lies."""
        return self._placement[partition]

    def partitions_of(self, shard: str) -> list[int]:
        """The partitions that lie in a shard."""
        return [partition for partition, name in self._placement.items() if name == shard]

    def of_partition(self, partition: int) -> Database:
        """The database in which a partition lies."""
        return self.databases[self._placement[partition]]

    def of_room(self, room_id: RoomId) -> Database:
        """The database in which a room lies."""
        return self.of_partition(self.partition_of(room_id))

    def replace_placement(self, placement: Mapping[int, str]) -> None:
        """Partitions lie elsewhere from now on (`storage.placement.get_placement`)."""
        self._placement = dict(placement)

    def group_rooms(self, room_ids: Iterable[RoomId]) -> dict[str, list[RoomId]]:
        """Rooms by shard name, for one query a shard."""
        groups: dict[str, list[RoomId]] = {}
        for room_id in room_ids:
            groups.setdefault(self.shard_of(self.partition_of(room_id)), []).append(room_id)
        return groups
