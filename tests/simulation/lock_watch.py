"""Who waits for a lock in PostgreSQL, asked in a thread beside the virtual loop."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import asyncpg

# A lock is granted before the commit that lets it go is answered; that somebody waits is told a little longer.
_BACKENDS = """
SELECT pid, pid IN (SELECT pid FROM pg_locks WHERE NOT granted) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Backends:
    """The processes of PostgreSQL that serve connections, by their number."""

    alive: frozenset[int]
    waiting: frozenset[int]


class LockWatch:
    """Answers at once, whatever the virtual time is. Closed by `close`."""

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connection: asyncpg.Connection[Any] = self._have(asyncpg.connect(dsn))

    def look(self) -> Backends:
        """What there is now."""
        rows = self._have(self._connection.fetch(_BACKENDS))
        return Backends(frozenset(row[0] for row in rows), frozenset(row[0] for row in rows if row[1]))

    def close(self) -> None:
        """End the connection and the thread."""
        self._have(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _have(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)
