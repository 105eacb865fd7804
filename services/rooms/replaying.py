"""Dead letters that an operator wants replayed: sent to their partitions once more.

Spec: none; DESIGN.md section 3.
"""

import structlog

from tessera.bus import BusUnavailable, CommandBus
from tessera.clock import Clock
from tessera.storage import dead_letters
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

LOOK_SECONDS = 10.0
AT_ONCE = 100


async def replay_requested(shards: RoomShards, commands: CommandBus, clock: Clock) -> None:
    """Run for ever; every writer may do it: of two, one gets the letter."""
    while True:
        await clock.sleep(LOOK_SECONDS)
        for shard, database in shards.databases.items():
            try:
                await _replay(database, commands)
            except (DatabaseUnavailable, BusUnavailable, OSError, TimeoutError) as error:
                log.warning("dead letters not replayed", shard=shard, error=str(error) or type(error).__name__)


async def _replay(database: Database, commands: CommandBus) -> None:
    async with database.reading() as tx:
        requested = await dead_letters.list_requested(tx, AT_ONCE)
    for command_id in requested:
        # Sent before the commit: should the send fail, the letter is as it was; should the commit, the command
        # meets its old outcome and does nothing.
        async with database.transaction() as tx:
            command = await dead_letters.replay(tx, command_id)
            if command is not None:
                await commands.send(command)
                log.info("dead letter replayed", command=command_id.hex(), partition=command.partition)
