"""Commands that broke the writer: kept for whoever looks into it, never deleted.

The client of a dead command was answered 500. A replay gives the command another try under its
id, so that a client that asks again learns what came of it then.

Spec: none; DESIGN.md section 3.
"""

from typing import NamedTuple

from matrixcore.identifiers import RoomId
from tessera.commands import Command, ReceivePdus, decode_command
from tessera.storage import inbox
from tessera.storage.database import Transaction

_LIST = """
SELECT command_id, partition, room_id, error, state, (extract(epoch FROM created_at) * 1000)::bigint AS created_ms
FROM rooms.dead_letters WHERE state IN ('dead', 'requested') OR $1
ORDER BY created_at, command_id LIMIT $2
"""

# The outcome goes with the state, so that of two replays only one sends the command.
_REPLAY = """
WITH letter AS (
    UPDATE rooms.dead_letters SET state = 'replayed' WHERE command_id = $1
        AND state IN ('dead', 'requested')
    RETURNING command_id, command
), reopened AS (
    DELETE FROM rooms.outcomes o USING letter WHERE o.command_id = letter.command_id
)
SELECT command FROM letter
"""

# None for a command that is decided: it will not be tried.
_COUNT_ATTEMPT = """
INSERT INTO rooms.command_attempts (partition, command_id, attempts)
SELECT $1, $2, 1 WHERE NOT EXISTS (SELECT FROM rooms.outcomes WHERE command_id = $2)
ON CONFLICT (command_id) DO UPDATE SET attempts = command_attempts.attempts + 1
RETURNING attempts
"""

_REQUEST = "UPDATE rooms.dead_letters SET state = 'requested' WHERE command_id = $1 AND state = 'dead'"
_LIST_REQUESTED = "SELECT command_id FROM rooms.dead_letters WHERE state = 'requested' ORDER BY created_at LIMIT $1"

_DROP = "UPDATE rooms.dead_letters SET state = 'dropped' WHERE command_id = $1 AND state = 'dead'"


class DeadLetter(NamedTuple):
    """A command that could not be carried out."""

    command_id: bytes
    partition: int
    room_id: RoomId
    error: str
    state: str  # dead, requested (to be replayed by a writer), replayed or dropped
    created_ms: int


async def list_dead_letters(tx: Transaction, limit: int, *, settled: bool = False) -> list[DeadLetter]:
    """The oldest dead letters of a shard; with `settled`, those replayed and dropped too."""
    return [DeadLetter(*row) for row in await tx.fetch(_LIST, settled, limit)]


async def count_attempt(tx: Transaction, partition: int, command_id: bytes) -> int:
    """Count an attempt before it is made, as it may end the process; how many there are with it, 0 if it is decided."""
    return await tx.fetchval(_COUNT_ATTEMPT, partition, command_id) or 0


async def replay(tx: Transaction, command_id: bytes) -> Command | None:
    """Reopen a dead command; the caller sends it again. None if there is none that is dead.

    Args:
        tx: a transaction, as the inbox rows that the command names come to life with it.
    """
    letter = await tx.fetchval(_REPLAY, command_id)
    if letter is None:
        return None
    command = decode_command(letter)
    if isinstance(command.body, ReceivePdus):
        await inbox.revive(tx, command.body.inbox_ids)
    return command


async def request_replay(tx: Transaction, command_id: bytes) -> bool:
    """Ask the writers for another try of a dead command; False if there is none that is dead."""
    return await tx.execute(_REQUEST, command_id) == "UPDATE 1"


async def list_requested(tx: Transaction, limit: int) -> list[bytes]:
    """The ids of commands that somebody wants replayed, oldest first."""
    return [row[0] for row in await tx.fetch(_LIST_REQUESTED, limit)]


async def drop(tx: Transaction, command_id: bytes) -> bool:
    """Settle a dead letter without another try; False if there is none that is dead."""
    return await tx.execute(_DROP, command_id) == "UPDATE 1"
