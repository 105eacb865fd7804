"""What redactions took away is kept for redaction_retention_period, then it goes. DESIGN.md section 4, "Redactions"."""

import structlog

from tessera.clock import Clock
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.purging import drop_originals
from tessera.storage.shards import RoomShards

SWEEP_SECONDS = 600.0
ROWS_AT_ONCE = 500

log = structlog.get_logger(__name__)


async def run(shards: RoomShards, clock: Clock, retention_ms: int) -> None:
    """Look every ten minutes, for ever."""
    while True:
        for name, database in shards.databases.items():
            try:
                await drop_old(database, clock.now_ms() - retention_ms)
            except DatabaseUnavailable:
                log.warning("originals of redacted events are kept on", shard=name)
        await clock.sleep(SWEEP_SECONDS)


async def drop_old(database: Database, before_ms: int) -> int:
    """Delete the originals of events that were redacted before a time (ms); how many."""
    dropped = 0
    while True:
        async with database.transaction() as tx:
            found = await drop_originals(tx, before_ms, ROWS_AT_ONCE)
        dropped += found
        if found < ROWS_AT_ONCE:
            return dropped
