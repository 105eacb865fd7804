"""The outcome of each command: one row in its room's shard, decided by whoever writes it first.

Nothing is decided in a shard that the partition has left (`partition_copy.list_writing`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from tessera.commands import Command, Outcome, OutcomeStatus, decode_outcome, encode_outcome
from tessera.storage.database import Transaction
from tessera.storage.partitions import PartitionMoved
from tessera.storage.shards import RoomShards

_FIND = "SELECT body FROM rooms.outcomes WHERE command_id = ANY($1::bytea[])"

T = TypeVar("T")
MOVED_LOOKS, MOVED_LOOK_SECONDS = 25, 0.2  # how often it is looked where a moved partition is now

_HAS_LEFT = "EXISTS (SELECT FROM rooms.partitions WHERE partition = $2 AND state = 'moved')"
# Sees no row if another transaction wrote it after this statement began; `withdraw` looks once more.
_WITHDRAW = f"""
WITH withdrawn AS (
    INSERT INTO rooms.outcomes (command_id, partition, status, body)
    SELECT $1::bytea, $2::integer, $3::smallint, $4::bytea WHERE NOT {_HAS_LEFT}
    ON CONFLICT DO NOTHING RETURNING body
)
SELECT body FROM withdrawn UNION ALL SELECT body FROM rooms.outcomes WHERE command_id = $1
"""  # noqa: S608 -- constant text

_REOPEN = f"""
WITH reopened AS (
    DELETE FROM rooms.outcomes WHERE command_id = $1 AND status = $3 AND NOT {_HAS_LEFT} RETURNING 1
)
SELECT EXISTS (SELECT FROM reopened), {_HAS_LEFT}
"""  # noqa: S608  constant text


async def list_outcomes(tx: Transaction, command_ids: Sequence[bytes]) -> list[Outcome]:
    """The outcomes that are decided, in any order."""
    return [decode_outcome(row[0]) for row in await tx.fetch(_FIND, list(command_ids))]


async def withdraw(tx: Transaction, command: Command) -> Outcome:
    """Decide that the command does not happen, unless something is decided; the outcome that then is.

    Raises:
        PartitionMoved: nothing can be decided here.
    """
    outcome = Outcome(command.id, OutcomeStatus.WITHDRAWN, command.partition)
    body = await tx.fetchval(_WITHDRAW, command.id, command.partition, int(outcome.status), encode_outcome(outcome))
    if body is None:
        body = await tx.fetchval(_FIND, [command.id])
    if body is None:
        raise PartitionMoved("the partition is being moved")
    return decode_outcome(body)


async def reopen(tx: Transaction, command: Command) -> bool:
    """Let a withdrawn command be tried again under its id; False if it is not withdrawn.

    Raises:
        PartitionMoved
    """
    is_reopened, is_moved = await tx.fetchrow(_REOPEN, command.id, command.partition, int(OutcomeStatus.WITHDRAWN))
    if is_moved:
        raise PartitionMoved("the partition is being moved")
    return bool(is_reopened)


class ShardOutcomes:
    """`tessera.room_commands.OutcomeStore` over the room shards."""

    def __init__(self, shards: RoomShards) -> None:
        self._shards = shards

    @property
    def shards(self) -> Collection[str]:
        """The names of all shards."""
        return self._shards.names

    def shard_of(self, partition: int) -> str:
        """The shard in which a partition lies, as far as is known."""
        return self._shards.believed_shard_of(partition)

    async def find(self, shard: str, command_ids: Sequence[bytes]) -> list[Outcome]:
        """The outcomes of these that are decided in the shard, in any order."""
        async with self._shards.databases[shard].reading() as tx:
            return await list_outcomes(tx, command_ids)

    async def withdraw(self, command: Command) -> Outcome:
        """Insert 'withdrawn' unless an outcome is there; answer the row that then is.

        Raises:
            DatabaseUnavailable: the command's fate is not known; a partition that is being moved is waited for.
        """
        return await self._where_it_is(command, withdraw)

    async def reopen(self, command: Command) -> bool:
        """Make place for another try of a withdrawn command; False if it is not withdrawn.

        Raises:
            DatabaseUnavailable
        """
        return await self._where_it_is(command, reopen)

    async def _where_it_is(self, command: Command, decide: Callable[[Transaction, Command], Awaitable[T]]) -> T:
        database = self._shards.databases[self._shards.believed_shard_of(command.partition)]
        for _ in range(MOVED_LOOKS):
            try:
                async with database.reading() as tx:
                    return await decide(tx, command)
            except PartitionMoved:
                await asyncio.sleep(MOVED_LOOK_SECONDS)
            database = self._shards.databases[self._shards.believed_shard_of(command.partition)]
        raise PartitionMoved("the partition is being moved")
