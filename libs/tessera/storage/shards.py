"""Which database a room lies in: partition by a stable hash, shard by placement (DESIGN section 2.8)."""

from collections.abc import Collection, Iterable, Mapping

from matrixcore.identifiers import RoomId
from tessera.clock import Clock
from tessera.commands import partition_of
from tessera.storage.database import Database, DatabaseUnavailable

TRUST_SECONDS = 5.0  # a placement that was read longer ago is not read by
MOVING_TRUST_SECONDS = 1.0  # the same for a partition that is being moved


class RoomShards:
    """The room databases by partition.

    `placement` gives each of the `partitions` partitions the name of its shard; it is data of the
    account store, YAML only names the databases.

    A process that answers requests follows the placement (`tessera.placement_following`). While it cannot, it must
    not read where a partition may have lain: `shard_of` and all that rest on it raise DatabaseUnavailable then. Only
    what is fenced by the partition's own row goes by `believed_shard_of` and `partitions_of`.
    """

    def __init__(self, databases: Mapping[str, Database], placement: Mapping[int, str], partitions: int) -> None:
        self.databases = dict(databases)
        self.partitions = partitions
        self.moving: frozenset[int] = frozenset()
        self._placement = dict(placement)
        self._clock: Clock | None = None
        self._read_at = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The shards' names."""
        return tuple(self.databases)

    def partition_of(self, room_id: RoomId) -> int:
        """The partition of a room."""
        return partition_of(room_id, self.partitions)

    def shard_of(self, partition: int) -> str:
        """The name of the shard in which a partition lies.

        Raises:
            DatabaseUnavailable: that is not known now.
        """
        if self._clock is not None:
            trust = MOVING_TRUST_SECONDS if partition in self.moving else TRUST_SECONDS
            if self._clock.monotonic() - self._read_at > trust:
                raise DatabaseUnavailable("where the partition lies is not known now")
        return self._placement[partition]

    def believed_shard_of(self, partition: int) -> str:
        """Where a partition lay when that was last known."""
        return self._placement[partition]

    def partitions_of(self, shard: str) -> list[int]:
        """The partitions that lay in a shard when that was last known."""
        return [partition for partition, name in self._placement.items() if name == shard]

    def of_partition(self, partition: int) -> Database:
        """The database in which a partition lies. Raises DatabaseUnavailable as `shard_of`."""
        return self.databases[self.shard_of(partition)]

    def of_room(self, room_id: RoomId) -> Database:
        """The database in which a room lies. Raises DatabaseUnavailable as `shard_of`."""
        return self.of_partition(self.partition_of(room_id))

    def follow(self, clock: Clock) -> None:
        """From now on a placement is trusted for a while only; the first one is still to be read."""
        self._clock, self._read_at = clock, float("-inf")

    def replace_placement(
        self, placement: Mapping[int, str], moving: Collection[int] = (), *, read_at: float = 0.0
    ) -> None:
        """Partitions lie elsewhere from now on (`storage.placement.get_placement`).

        Args:
            moving: those that are being moved (`storage.partition_moves.list_moving`).
            read_at: by the clock of `follow`, a moment at which this was so.
        """
        self._placement = dict(placement)
        self.moving = frozenset(moving)
        self._read_at = read_at

    def group_rooms(self, room_ids: Iterable[RoomId]) -> dict[str, list[RoomId]]:
        """Rooms by shard name, for one query a shard. Raises DatabaseUnavailable as `shard_of`."""
        groups: dict[str, list[RoomId]] = {}
        for room_id in room_ids:
            groups.setdefault(self.shard_of(self.partition_of(room_id)), []).append(room_id)
        return groups
