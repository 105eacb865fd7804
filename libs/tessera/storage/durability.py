"""Whether PostgreSQL keeps what it acknowledges: acknowledged means committed, and committed must mean kept.

Spec: none; DESIGN.md sections 2 (3) and 10.
"""

from tessera.storage.database import Database

_SETTINGS = """
SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
    current_setting('synchronous_standby_names')
"""


async def find_unsafe_settings(database: Database) -> list[str]:
    """What in PostgreSQL's settings, as our connections see them, lets an acknowledged commit be lost."""
    fsync, full_page_writes, synchronous_commit, standbys = await database.fetchrow(_SETTINGS)
    unsafe: list[str] = []
    if fsync == "off":
        unsafe.append("fsync is off: a crash of the machine may destroy the database")
    if full_page_writes == "off":
        unsafe.append("full_page_writes is off: a crash of the machine may tear pages")
    if synchronous_commit == "off":
        unsafe.append("synchronous_commit is off: a crash loses what was acknowledged last")
    if standbys and synchronous_commit == "local":
        unsafe.append("synchronous_commit is local, though there are synchronous standbys: a fail-over loses commits")
    return unsafe
