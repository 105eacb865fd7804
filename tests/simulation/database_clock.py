"""PostgreSQL's clock in virtual time: leases end, and what is due becomes due, as the loop's time passes.

The functions that tell the time stand before PostgreSQL's own in the search path of the run's database.
"""

import asyncio
from typing import TYPE_CHECKING

from tessera.storage.database import Database

if TYPE_CHECKING:
    from virtual_loop import VirtualLoop

EPOCH_MS = 1_700_000_000_000
STEP_SECONDS = 0.25  # so much may PostgreSQL's clock be behind
# A sequence, since it is no part of a transaction: everybody sees the same time.
_CLOCK = f"""
CREATE SCHEMA virtual;
CREATE SEQUENCE virtual.milliseconds START {EPOCH_MS};
CREATE FUNCTION virtual.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS $$ SELECT to_timestamp(last_value / 1000.0) FROM virtual.milliseconds $$;
CREATE FUNCTION virtual.now() RETURNS timestamptz LANGUAGE sql STABLE
    AS $$ SELECT to_timestamp(last_value / 1000.0) FROM virtual.milliseconds $$;
DO $$
DECLARE found record;
BEGIN
    FOR found IN SELECT table_schema, table_name, column_name FROM information_schema.columns
        WHERE table_schema IN ('rooms', 'accounts') AND column_default LIKE 'now()%'
    LOOP
        EXECUTE format('ALTER TABLE %I.%I ALTER %I SET DEFAULT virtual.now()',
                       found.table_schema, found.table_name, found.column_name);
    END LOOP;
    EXECUTE format('ALTER DATABASE %I SET search_path = virtual, pg_catalog, public', current_database());
END $$;
"""


async def set_up_clock(database: Database) -> None:
    """Connections that are made from now on have the virtual clock."""
    await database.execute(_CLOCK)


async def keep_time(database: Database, loop: "VirtualLoop") -> None:
    """Let PostgreSQL's clock go with the loop's, until cancelled."""
    while True:
        await database.execute("SELECT setval('virtual.milliseconds', $1)", EPOCH_MS + round(loop.time() * 1000))
        await asyncio.sleep(STEP_SECONDS)
