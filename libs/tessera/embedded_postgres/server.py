"""`EmbeddedPostgres`: the PostgreSQL that `tessera serve` starts when it is given none."""

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import structlog
from asyncpg import PostgresError

from tessera.embedded_postgres.account import find_account
from tessera.embedded_postgres.cluster import SUPERUSER, check_version, create_cluster
from tessera.embedded_postgres.distribution import Distribution, find_distribution, readable_distribution
from tessera.embedded_postgres.errors import EmbeddedPostgresError
from tessera.embedded_postgres.launching import Launcher
from tessera.embedded_postgres.lock import DirectoryLock
from tessera.embedded_postgres.options import server_options
from tessera.embedded_postgres.postmaster import (
    is_postmaster_of,
    read_pid_file,
    runs_as_started,
    stop_postmaster,
)
from tessera.ids import IdSource
from tessera.storage.database import Database, DatabaseUnavailable

_T = TypeVar("_T")

log = structlog.get_logger(__name__)

DATABASE = "tessera"
START_TIMEOUT_SECONDS = 300.0  # after a crash the log of up to a gigabyte is replayed first

_SOCKET_PORT = 5432  # a part of the socket's name only
_MAX_SOCKET_PATH_BYTES = 103  # what every system takes, the terminating zero counted
_MAX_LOG_BYTES = 10 << 20
_POLL_SECONDS = 0.01
_START_ATTEMPTS = 20  # while the port is taken, or the last children of a killed server are still leaving
_RETRY_SECONDS = 0.5
_PASSING_FAILURES = (
    'lock file "postmaster.pid" already exists',
    "pre-existing shared memory block",
    "could not create any TCP/IP sockets",
    "Address already in use",
)


class EmbeddedPostgres:
    """A PostgreSQL server in a directory of its own, for this process alone.

    A server that a killed Tessera left behind is taken over if it is healthy and runs with today's programs and
    settings; else it is stopped and started anew.
    """

    def __init__(
        self, directory: Path, *, settings: Mapping[str, str] | None = None, ids: IdSource | None = None
    ) -> None:
        """Nothing is touched before `start`.

        Args:
            directory: holds the cluster, the password, the socket and the log; made if it is missing.
            settings: server settings that differ from our own (tests pass `FORGETFUL`).
            ids: where the password comes from.
        """
        self._root = directory.absolute()
        self._cluster = self._root / "cluster"
        self._settings = dict(settings or {})
        self._ids = ids or IdSource()
        self._lock = DirectoryLock(self._root / "lock")
        self._password = ""
        self._socket_directory: Path | None = None
        self._port = _SOCKET_PORT
        self._pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process ID of the server while it runs."""
        return self._pid

    @property
    def log_path(self) -> Path:
        """What PostgreSQL writes about itself."""
        return self._root / "postgres.log"

    def dsn(self, database: str = DATABASE) -> str:
        """The URL of a database, with the password in it: not for logs."""
        login = f"{SUPERUSER}:{quote(self._password, safe='')}"
        if self._socket_directory is None:
            return f"postgresql://{login}@127.0.0.1:{self._port}/{database}"
        return f"postgresql://{login}@/{database}?" + urlencode({"host": str(self._socket_directory)})

    def find_running_dsn(self) -> str | None:
        """The URL of the database if another Tessera runs this server now: for a tool beside it."""
        found = read_pid_file(self._cluster)
        if found is None or not found.ready or not is_postmaster_of(found.pid, self._cluster):
            return None
        self._password = self._find_or_make_password()
        self._port = found.port
        directory = self._root / "socket"
        self._socket_directory = directory if directory.exists() else None
        return self.dsn()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Make the cluster if it is missing, start the server or take it over, and make the database `tessera`.

        Raises:
            EmbeddedPostgresError: it does not work, and why.
        """
        if self._pid is not None:
            return
        try:
            distribution, launcher = await _finish(asyncio.to_thread(self._prepare))
            await self._adopt_or_start(distribution, launcher)
            await self._create_database()
        except OSError as error:
            await self.stop()
            raise EmbeddedPostgresError(_explain(error, self._root)) from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the server within 25 seconds and let another process have the directory. Idempotent.

        Raises:
            EmbeddedPostgresError: it does not stop.
        """
        try:
            if self._pid is not None and not await _finish(stop_postmaster(self._pid, self._cluster, self._process)):
                raise EmbeddedPostgresError(f"PostgreSQL (process ID {self._pid}) does not stop")
        finally:
            self._pid = self._process = None
            self._lock.release()

    def _prepare(self) -> tuple[Distribution, Launcher]:
        """Everything before the server: directories, lock, password, programs, files. Blocks for a second at first."""
        # Root's directories let the other account pass, without letting it list or write.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        self._root.parent.mkdir(mode=mode, parents=True, exist_ok=True)
        self._root.mkdir(mode=mode, exist_ok=True)
        self._lock.acquire()
        account = find_account(self._cluster)
        distribution = find_distribution()
        launcher = Launcher()
        if account is not None:
            distribution = readable_distribution(distribution, account, self._root)
            launcher = Launcher(account, through_closed_directories=not account.can_reach(self._root / "cluster"))
        self._password = self._find_or_make_password()
        self._prepare_socket_directory(launcher)
        if self._cluster.exists():
            check_version(self._cluster, distribution)
        else:
            durable = self._settings.get("fsync") != "off"
            create_cluster(self._cluster, distribution, launcher, self._password, durable=durable)
        return distribution, launcher

    def _find_or_make_password(self) -> str:
        path = self._root / "password"
        if self._cluster.exists():
            return path.read_text().strip()
        password = self._ids.token()
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(password + "\n")
            file.flush()
            os.fsync(file.fileno())
        return password

    def _prepare_socket_directory(self, launcher: Launcher) -> None:
        directory = self._root / "socket"
        if len(os.fsencode(directory / f".s.PGSQL.{_SOCKET_PORT}")) > _MAX_SOCKET_PATH_BYTES:
            return  # the loopback instead
        directory.mkdir(mode=0o700, exist_ok=True)
        launcher.own(directory)
        self._socket_directory = directory

    def _command(self, distribution: Distribution) -> list[str]:
        options = server_options(self._settings, port=self._port, socket_directory=self._socket_directory)
        return [distribution.program("postgres"), "-D", str(self._cluster), *options]

    async def _adopt_or_start(self, distribution: Distribution, launcher: Launcher) -> None:
        self._rotate_log()
        for attempt in range(1, _START_ATTEMPTS + 1):
            # Each time, for a server that was starting when its Tessera was killed shows itself only now.
            if await self._adopt(self._command(distribution)):
                return
            if self._socket_directory is None:
                self._port = _free_port()
            failure = await self._try_to_start(distribution, launcher)
            if failure is None:
                return
            if attempt == _START_ATTEMPTS or not any(passing in failure for passing in _PASSING_FAILURES):
                raise EmbeddedPostgresError(f"PostgreSQL did not start: {failure} (see {self.log_path})")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _adopt(self, command: list[str]) -> bool:
        """Take over a running server of this cluster, or stop it."""
        found = read_pid_file(self._cluster)
        if found is None or not is_postmaster_of(found.pid, self._cluster):
            return False
        if self._socket_directory is None:
            command = [word.replace(f"port={self._port}", f"port={found.port}") for word in command]
            self._port = found.port
        if found.ready and runs_as_started(found.pid, command) and await self._answers():
            log.info("postgres_taken_over", pid=found.pid)
            self._pid = found.pid
            return True
        log.info("postgres_restarting", pid=found.pid)
        if not await stop_postmaster(found.pid, self._cluster):
            raise EmbeddedPostgresError(f"an old PostgreSQL (process ID {found.pid}) does not stop")
        return False

    async def _answers(self) -> bool:
        try:
            database = await Database.connect(self.dsn("postgres"), max_size=1)
        except DatabaseUnavailable:
            return False
        await database.close()
        return True

    async def _try_to_start(self, distribution: Distribution, launcher: Launcher) -> str | None:
        """Start the server and wait until it is ready; the reason if it ends instead."""
        environment = {}
        stale = read_pid_file(self._cluster)
        if stale is not None:
            # Whoever has that number now is not a server of this cluster (`_adopt` looked). PostgreSQL does not know,
            # would refuse to start, and is told so in pg_ctl's way; its check of the shared memory stays in force.
            environment["PG_GRANDPARENT_PID"] = str(stale.pid)
        log_file = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            log_start = os.fstat(log_file).st_size
            self._process = launcher.start(self._command(distribution), self._cluster, log_file, environment)
        finally:
            os.close(log_file)
        self._pid = self._process.pid
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                while self._process.poll() is None:
                    now = read_pid_file(self._cluster)
                    if now is not None and now.pid == self._pid and now.ready:
                        return None
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise EmbeddedPostgresError(
                f"PostgreSQL was not ready after {START_TIMEOUT_SECONDS:.0f} s (see {self.log_path})"
            ) from None
        status = self._process.returncode
        self._pid = self._process = None
        return self._last_complaint(log_start) or f"it ended with status {status}"

    async def _create_database(self) -> None:
        try:
            database = await Database.connect(self.dsn("postgres"), max_size=1)
            try:
                if await database.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE) is None:
                    await database.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
            finally:
                await database.close()
        except (DatabaseUnavailable, PostgresError) as error:
            raise EmbeddedPostgresError(f"PostgreSQL runs but does not work: {error} (see {self.log_path})") from error

    def _rotate_log(self) -> None:
        try:
            if self.log_path.stat().st_size > _MAX_LOG_BYTES:
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
        except FileNotFoundError:
            pass

    def _last_complaint(self, start: int) -> str | None:
        """The first line of the log from `start` on that says why the server ended."""
        with self.log_path.open("rb") as file:
            file.seek(start)
            lines = file.read(64 << 10).decode(errors="replace").splitlines()
        for word in ("PANIC:", "FATAL:", "ERROR:"):
            for line in lines:
                if word in line:
                    return line[line.index(word) :]
        return lines[-1] if lines else None


async def _finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for `work` to its end even when cancelled: a half-made cluster or a running server must not be left."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _explain(error: OSError, directory: Path) -> str:
    where = error.filename or directory
    if error.errno == errno.ENOSPC:
        return f"the disk is full: {where}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot write to {where}: {error.strerror}"
    return f"{where}: {error.strerror or error}"
