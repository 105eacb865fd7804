"""The outcome of each command: one row in its room's shard, decided by whoever writes it first."""

from collections.abc import Collection, Sequence

from tessera.commands import Command, Outcome, OutcomeStatus, decode_outcome, encode_outcome
from tessera.storage.database import Transaction
from tessera.storage.shards import RoomShards

_FIND = "SELECT body FROM rooms.outcomes WHERE command_id = ANY($1::bytea[])"

# Sees no row if another transaction wrote it after this statement began; `withdraw` looks once more.
_WITHDRAW = """
WITH withdrawn AS (
    INSERT INTO rooms.outcomes (command_id, partition, status, body) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING RETURNING body
)
SELECT body FROM withdrawn UNION ALL SELECT body FROM rooms.outcomes WHERE command_id = $1
"""

_REOPEN = "DELETE FROM rooms.outcomes WHERE command_id = $1 AND status = $2"


async def list_outcomes(tx: Transaction, command_ids: Sequence[bytes]) -> list[Outcome]:
    """The outcomes that are decided, in any order."""
    return [decode_outcome(row[0]) for row in await tx.fetch(_FIND, list(command_ids))]


async def withdraw(tx: Transaction, command: Command) -> Outcome:
    """Decide that the command does not happen, unless something is decided; the outcome that then is."""
    outcome = Outcome(command.id, OutcomeStatus.WITHDRAWN, command.partition)
    body = await tx.fetchval(_WITHDRAW, command.id, command.partition, int(outcome.status), encode_outcome(outcome))
    if body is None:
        body = await tx.fetchval(_FIND, [command.id])
    return decode_outcome(body)


async def reopen(tx: Transaction, command_id: bytes) -> bool:
    """Let a withdrawn command be tried again under its id; False if it is not withdrawn."""
    return await tx.execute(_REOPEN, command_id, int(OutcomeStatus.WITHDRAWN)) == "DELETE 1"


class ShardOutcomes:
    """`tessera.room_commands.OutcomeStore` over the room shards."""

    def __init__(self, shards: RoomShards) -> None:
        self._shards = shards

    @property
    def shards(self) -> Collection[str]:
        """The names of all shards."""
        return self._shards.names

    def shard_of(self, partition: int) -> str:
        """The shard in which a partition lies."""
        return self._shards.shard_of(partition)

    async def find(self, shard: str, command_ids: Sequence[bytes]) -> list[Outcome]:
        """The outcomes of these that are decided in the shard, in any order."""
        async with self._shards.databases[shard].reading() as tx:
            return await list_outcomes(tx, command_ids)

    async def withdraw(self, command: Command) -> Outcome:
        """Insert 'withdrawn' unless an outcome is there; answer the row that then is."""
        async with self._shards.of_partition(command.partition).reading() as tx:
            return await withdraw(tx, command)

    async def reopen(self, command: Command) -> bool:
        """Make place for another try of a withdrawn command; False if it is not withdrawn."""
        async with self._shards.of_partition(command.partition).reading() as tx:
            return await reopen(tx, command.id)
