"""Moving a partition to another room shard while everything runs (`tessera partitions move`).

Every step is a row somewhere and is repeated without harm, so that a move that was killed goes on when it is asked for
again: announce, fence the source, copy, switch the placement, activate the target. Sends wait from the fence to the
activation; the two waits in between are what the slowest process may take to hear of it (`tessera.storage.shards`).

Spec: none; DESIGN.md section 2, invariant 8; docs/adr/0003-moving-partitions.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tessera.clock import Clock
from tessera.storage import partition_copy, partition_moves
from tessera.storage.database import Database
from tessera.storage.partition_copy import CannotCopy
from tessera.storage.partition_moves import PartitionMoveRow
from tessera.storage.placement import get_placement
from tessera.storage.shards import MOVING_TRUST_SECONDS, TRUST_SECONDS

SLACK_SECONDS = 0.5  # for two machines' clocks to run at different speeds, and a look that was just under way
GRACE_SECONDS = 60.0  # after a move: reads that began before it have ended

WRITING_LOOKS, WRITING_LOOK_SECONDS = 1_000, 0.02


class CannotMove(Exception):
    """The partition stays as it is; one line says why."""


Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PartitionMover:
    """Moves partitions between the shards that the configuration names.

    Attributes:
        tell: what is being done, a line at a time.
        announced_seconds: how long a move is known of before anything happens; sends go on meanwhile.
        switched_seconds: how long the new place is known before anybody writes there.
    """

    accounts: Database
    databases: Mapping[str, Database]
    clock: Clock
    tell: Tell
    announced_seconds: float = TRUST_SECONDS + SLACK_SECONDS
    switched_seconds: float = MOVING_TRUST_SECONDS + SLACK_SECONDS

    async def move(self, partition: int, target: str) -> bool:
        """Move a partition, or go on with a move that was begun; False if it lies there already.

        A move that has not switched yet is taken back by moving the partition to where it came from.

        Raises:
            CannotMove, DatabaseUnavailable
        """
        if target not in self.databases:
            raise CannotMove(f"tessera.shards names no shard {target}; there is {', '.join(sorted(self.databases))}")
        async with self.accounts.reading() as tx:
            shard = await partition_moves.find_shard(tx, partition)
        if shard is None or shard not in self.databases:
            raise CannotMove(f"tessera.shards does not name the shard {shard}, where partition {partition} lies")
        columns = {} if shard == target else await self._compare(self.databases[shard], self.databases[target])
        async with self.accounts.reading() as tx:
            move = await partition_moves.announce(tx, partition, target)
        if move is None:
            # A move that was taken back may have been killed before its last step.
            async with self.databases[target].reading() as tx:
                await partition_copy.activate(tx, partition)
            return False
        if move.target != target:
            await self._take_back(move, target)
            return True
        if move.phase == "announced":
            await self._bring(move, columns)
            move = await self._get(partition)
        await self._wait(move, self.switched_seconds)
        await self._activate(move)
        return True

    async def _bring(self, move: PartitionMoveRow, columns: Mapping[str, tuple[str, ...]]) -> None:
        """From the announcement to the switch."""
        partition, source, target = move.partition, self.databases[move.source], self.databases[move.target]
        self.tell(f"partition {partition}: announced to every process")
        await self._wait(move, self.announced_seconds)
        async with target.reading() as tx:
            await partition_copy.make_place(tx, partition)
        await self._fence(source, partition)
        if not await self._is_copied(partition, source, target):
            await self._copy(partition, source, target, columns)
        async with self.accounts.reading() as tx:
            if not await partition_moves.switch(tx, move):
                raise CannotMove(f"the move of partition {partition} was taken back")
        self.tell(f"partition {partition}: lies in {move.target}")

    @staticmethod
    async def _compare(source: Database, target: Database) -> Mapping[str, tuple[str, ...]]:
        try:
            async with source.reading() as tx:
                ours = await partition_copy.read_layout(tx)
            async with target.reading() as tx:
                theirs = await partition_copy.read_layout(tx)
        except CannotCopy as error:
            raise CannotMove(str(error)) from error
        if ours.database == theirs.database:
            raise CannotMove("both shards are the same database")
        if ours.columns != theirs.columns:
            raise CannotMove("the shards' tables differ: run `tessera migrate` first")
        return ours.columns

    async def _fence(self, source: Database, partition: int) -> None:
        """Let nobody write at the source, and wait for those who write there and may not have seen it."""
        async with source.reading() as tx:
            await partition_copy.fence(tx, partition)
        self.tell(f"partition {partition}: sends wait")
        async with source.reading() as tx:
            writing = await partition_copy.list_writing(tx)
            for _ in range(WRITING_LOOKS):
                if not writing:
                    return
                await self.clock.sleep(WRITING_LOOK_SECONDS)
                writing &= await partition_copy.list_writing(tx)
        raise CannotMove(f"a transaction at the source does not end; move partition {partition} once more")

    @staticmethod
    async def _is_copied(partition: int, source: Database, target: Database) -> bool:
        async with source.reading() as tx:
            ours = await partition_copy.find_partition(tx, partition)
        async with target.reading() as tx:
            theirs = await partition_copy.find_partition(tx, partition)
        return ours is not None and theirs is not None and theirs.epoch > ours.epoch

    async def _copy(
        self, partition: int, source: Database, target: Database, columns: Mapping[str, tuple[str, ...]]
    ) -> None:
        def progress(table: str, rows: int) -> None:
            if rows:
                self.tell(f"partition {partition}: copied {rows} rows of {table}")

        try:
            async with source.snapshot() as reading, target.transaction() as writing:
                await partition_copy.copy_partition(reading, writing, columns, partition, progress)
        except CannotCopy as error:
            raise CannotMove(str(error)) from error

    async def _activate(self, move: PartitionMoveRow) -> None:
        async with self.databases[move.target].reading() as tx:
            await partition_copy.activate(tx, move.partition)
        async with self.accounts.reading() as tx:
            await partition_moves.finish(tx, move)
        self.tell(f"partition {move.partition}: sends go on")

    async def _take_back(self, move: PartitionMoveRow, target: str) -> None:
        if move.phase != "announced" or move.source != target:
            raise CannotMove(
                f"partition {move.partition} is on its way from {move.source} to {move.target}: finish that move first"
            )
        async with self.accounts.reading() as tx:
            if not await partition_moves.cancel(tx, move.partition):
                raise CannotMove(f"the move of partition {move.partition} has gone too far: finish it first")
        async with self.databases[target].reading() as tx:
            await partition_copy.activate(tx, move.partition)
        self.tell(f"partition {move.partition}: stays in {target}")

    async def _get(self, partition: int) -> PartitionMoveRow:
        async with self.accounts.reading() as tx:
            moves = {move.partition: move for move in await partition_moves.list_moves(tx)}
        return moves[partition]

    async def _wait(self, move: PartitionMoveRow, seconds: float) -> None:
        """Until the move has been in its phase for so long, by the account store's clock."""
        while (left := seconds - (await self._get(move.partition)).seconds) > 0:
            await self.clock.sleep(left)


async def clean_up(
    accounts: Database,
    databases: Mapping[str, Database],
    partitions: int,
    tell: Tell,
    *,
    grace_seconds: float = GRACE_SECONDS,
) -> bool:
    """Delete what partitions have left where they lay before; False if some of it is too young.

    May be ended and begun again at any time, and run while partitions move.

    Raises:
        DatabaseUnavailable, PlacementMismatch
    """
    is_clean = True
    for shard, database in databases.items():
        async with database.reading() as tx:
            epochs = await partition_copy.list_moved(tx)
        # Read afterwards: a partition that comes here after this gets another epoch with its first row.
        async with accounts.reading() as tx:
            moves = {move.partition: move for move in await partition_moves.list_moves(tx)}
            placement = await get_placement(tx, partitions, list(databases))
        for partition, epoch in epochs.items():
            move = moves.get(partition)
            if placement.get(partition) == shard or (move is not None and move.phase != "finished"):
                continue
            if move is not None and move.seconds < grace_seconds:
                tell(f"partition {partition}: moved a moment ago, its rows stay in {shard} for {grace_seconds:.0f} s")
                is_clean = False
                continue
            if rows := await _delete_leftovers(database, partition, epoch):
                tell(f"partition {partition}: deleted {rows} rows in {shard}")
    return is_clean


async def _delete_leftovers(database: Database, partition: int, epoch: int) -> int:
    rows = 0
    for table in reversed(partition_copy.COPIED):
        deleted: int | None = 1
        while deleted:
            async with database.transaction() as tx:
                deleted = await partition_copy.delete_leftovers(tx, partition, epoch, table)
            if deleted is None:
                return rows
            rows += deleted
    return rows
