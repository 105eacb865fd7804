"""Connections to PostgreSQL: the one place, with the modules around it, that knows asyncpg.

A storage function takes a `Transaction` first and never opens or ends one; the work functions
do, with `Database.transaction()` (read and write), `Database.reading()` (single statements, each on its
own) or `Database.snapshot()` (one REPEATABLE READ view for several statements).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import asyncpg
import structlog

log = structlog.get_logger(__name__)

QUERY_TIMEOUT_SECONDS = 30.0
ACQUIRE_TIMEOUT_SECONDS = 5.0
MAX_WAITING = 500  # callers that wait for a connection of one pool
WATCH_SECONDS = 1.0
SLOW_SECONDS = 4.0  # whoever holds a connection for longer has it looked whether PostgreSQL answers at all
PROBE_SECONDS = 3.0

# Every statement here finds its rows by a key, for any values alike. PostgreSQL would still plan many of them anew each
# time, as a plan for values that it knows looks cheaper; planning then costs as much as the statement.
_PLANNING = {"jit": "off", "plan_cache_mode": "force_generic_plan"}


class DatabaseUnavailable(Exception):
    """The database did not give a connection in time, or cannot be reached; answer 503."""


class Row(Protocol):
    """One row: by column name or by number."""

    def __getitem__(self, key: Any) -> Any: ...

    def __len__(self) -> int: ...


class Transaction(Protocol):
    """Statements on one connection. Rows are records that answer to names and numbers."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement; its command tag ("UPDATE 3")."""

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]:
        """All rows of a query."""

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """The first row, or None."""

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """One column of the first row, or None."""

    async def executemany(self, command: str, args: Any, *, timeout: float | None = None) -> None:
        """Run a statement for each tuple, in one round trip."""


@dataclass(slots=True)
class StatementCount:
    """What ran while it was counted."""

    statements: int = 0
    transactions: int = 0  # explicit ones; a single statement outside commits on its own


_counting_here: ContextVar[StatementCount | None] = ContextVar("counting_here", default=None)


class _CountedConnection:
    """A connection whose statements are counted for the tests that assert how many there are."""

    __slots__ = ("_connection", "_count")

    def __init__(self, connection: Any, count: StatementCount) -> None:
        self._connection = connection
        self._count = count

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        self._count.statements += 1
        tag: str = await self._connection.execute(query, *args, timeout=timeout)
        return tag

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]:
        self._count.statements += 1
        rows: list[Any] = await self._connection.fetch(query, *args, timeout=timeout)
        return rows

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        self._count.statements += 1
        return await self._connection.fetchrow(query, *args, timeout=timeout)

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        self._count.statements += 1
        return await self._connection.fetchval(query, *args, column=column, timeout=timeout)

    async def executemany(self, command: str, args: Any, *, timeout: float | None = None) -> None:
        self._count.statements += 1
        await self._connection.executemany(command, args, timeout=timeout)


async def _keep_session(_connection: Any) -> None:
    """Nothing here changes a session, so the pool's RESET ALL at each release would be a round trip for nothing."""


class Database:
    """A bounded pool of connections to one database."""

    def __init__(
        self, pool: asyncpg.Pool, *, dsn: str = "", max_waiting: int = MAX_WAITING, is_shut: bool = False
    ) -> None:
        self._pool = pool
        self._dsn = dsn
        self._is_hanging = False
        self._is_shut = is_shut
        self._held: dict[Any, float] = {}  # connections in use -> since when, by the loop's clock
        self._waiting = 0
        self._max_waiting = max_waiting
        self._counts: list[StatementCount] = []

    @classmethod
    async def connect(
        cls,
        dsn: str,
        *,
        min_size: int = 1,
        max_size: int = 10,
        pgbouncer: bool = False,
        application_name: str = "tessera",
        is_shut: bool = False,
    ) -> "Database":
        """Open a pool.

        Args:
            is_shut: nothing is done with it until `open`.
            pgbouncer: behind a transaction pooler, where prepared statements have no home; it refuses settings, too.

        Raises:
            DatabaseUnavailable: it cannot be reached or refuses us.
        """
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                timeout=ACQUIRE_TIMEOUT_SECONDS,
                command_timeout=QUERY_TIMEOUT_SECONDS,
                statement_cache_size=0 if pgbouncer else 500,
                reset=_keep_session,
                max_inactive_connection_lifetime=0 if not pgbouncer else 300,
                server_settings={"application_name": application_name} | ({} if pgbouncer else _PLANNING),
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            raise unreachable(dsn, error) from error
        return cls(pool, dsn=dsn, is_shut=is_shut)

    def open(self) -> None:
        """The database may be used."""
        self._is_shut = False

    async def close(self) -> None:
        """Close the pool; statements still running after five seconds are cut off."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def reading(self, *, is_kept: bool = False) -> AsyncIterator[Transaction]:
        """A connection without a transaction: each statement stands alone. For reads and single writes.

        Args:
            is_kept: for longer than its statements take, which have time-outs of their own (see `watch`).
        """
        async with self._connection(is_kept=is_kept) as connection:
            yield self._counted(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A READ COMMITTED transaction: committed at the end, rolled back if the block raises."""
        async with self._connection() as connection, connection.transaction():
            for count in self._counters():
                count.transactions += 1
            yield self._counted(connection)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Transaction]:
        """A REPEATABLE READ, read-only transaction: all statements see one moment."""
        async with (
            self._connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield self._counted(connection)

    async def watch(self) -> None:
        """Run for ever: find out when PostgreSQL hangs, and let nobody wait for it until it answers again.

        A server that is gone says so, or the kernel does; one that stands still says nothing, and each statement would
        wait for its time-out. As long as statements end, nothing is asked.
        """
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = asyncio.get_running_loop().time()
            if not self._is_hanging and not any(now - since > SLOW_SECONDS for since in self._held.values()):
                continue
            answers = await self._answers()
            if not answers and not self._is_hanging:
                log.error("PostgreSQL hangs: nobody waits for it any longer", database=urlsplit(self._dsn).path[1:])
                for connection in tuple(self._held):
                    connection.terminate()
            elif answers and self._is_hanging:
                log.warning("PostgreSQL answers again", database=urlsplit(self._dsn).path[1:])
            self._is_hanging = not answers

    async def _answers(self) -> bool:
        """Whether PostgreSQL takes a connection; a statement could wait behind others in a pooler."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                connection = await asyncpg.connect(self._dsn, statement_cache_size=0)
        except (TimeoutError, ConnectionError):
            return False
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return True  # it has something against us, and says so
        connection.terminate()
        return True

    async def ping(self) -> None:
        """Returns if the database answers.

        Raises:
            DatabaseUnavailable: it does not.
        """
        await self.fetchval("SELECT 1")

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """All rows of a single statement."""
        async with self.reading() as tx:
            return await tx.fetch(query, *args)

    async def fetchrow(self, query: str, *args: Any) -> Any:
        """The first row of a single statement, or None."""
        async with self.reading() as tx:
            return await tx.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: Any) -> Any:
        """The first column of the first row of a single statement, or None."""
        async with self.reading() as tx:
            return await tx.fetchval(query, *args)

    async def execute(self, query: str, *args: Any) -> str:
        """Run a single statement; its command tag."""
        async with self.reading() as tx:
            return await tx.execute(query, *args)

    @asynccontextmanager
    async def counting_here(self) -> AsyncIterator[StatementCount]:
        """Count the statements of this task and of those it starts, on any pool; for tests."""
        count = StatementCount()
        token = _counting_here.set(count)
        try:
            yield count
        finally:
            _counting_here.reset(token)

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[StatementCount]:
        """Count the statements that run on this pool meanwhile; for tests."""
        count = StatementCount()
        self._counts.append(count)
        try:
            yield count
        finally:
            self._counts.remove(count)

    @asynccontextmanager
    async def _connection(self, *, is_kept: bool = False) -> AsyncIterator[Any]:
        if self._is_shut:
            raise DatabaseUnavailable("the database was away when this process started, and is not back")
        if self._is_hanging:
            raise DatabaseUnavailable("the database does not answer")
        if self._waiting >= self._max_waiting:
            raise DatabaseUnavailable("too many are waiting for a connection")
        self._waiting += 1
        try:
            connection = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
            raise DatabaseUnavailable(str(error) or "no connection in time") from error
        except asyncpg.InterfaceError as error:
            raise DatabaseUnavailable(str(error)) from error
        finally:
            self._waiting -= 1
        self._held[connection] = float("inf") if is_kept else asyncio.get_running_loop().time()
        try:
            yield connection
        except (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, ConnectionError) as error:
            raise DatabaseUnavailable(str(error) or "the connection was lost") from error
        except asyncpg.InternalClientError as error:
            # asyncpg lost count of a connection that the server ended just when a statement began.
            connection.terminate()
            raise DatabaseUnavailable("the connection was lost") from error
        except asyncpg.InterfaceError as error:
            # What asyncpg says of a connection that ended between two statements; also of wrong arguments, though.
            if not _is_lost(connection):
                raise
            raise DatabaseUnavailable("the connection was lost") from error
        finally:
            del self._held[connection]
            await self._pool.release(connection)

    def _counters(self) -> list[StatementCount]:
        here = _counting_here.get()
        return self._counts if here is None else [*self._counts, here]

    def _counted(self, connection: Any) -> Transaction:
        for count in self._counters():
            connection = _CountedConnection(connection, count)
        counted: Transaction = connection
        return counted


def unreachable(dsn: str, error: BaseException) -> DatabaseUnavailable:
    """The error for a connection that cannot be made: where and why in one line, never the password."""
    parts = urlsplit(dsn)
    parameters = parse_qs(parts.query)
    host = parts.hostname or parameters.get("host", ["localhost"])[0]
    # Not parts.port: it raises for a list of hosts, and there the ports stand in the parameters anyway.
    port = parts.netloc.rpartition("@")[2].rpartition(":")[2] if parts.hostname else ""
    place = f"{host}:{port}" if port.isdigit() else host
    reason = " ".join((str(error) or type(error).__name__).split())
    return DatabaseUnavailable(f"cannot connect to PostgreSQL at {place}, database {parts.path[1:]}: {reason}")


def _is_lost(connection: Any) -> bool:
    try:
        closed: bool = connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has taken it back already
        return True
    return closed
