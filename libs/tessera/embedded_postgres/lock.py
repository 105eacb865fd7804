"""One Tessera for a data directory."""

import fcntl
import os
from pathlib import Path

from tessera.embedded_postgres.errors import EmbeddedPostgresError


class DirectoryLock:
    """A lock on a file, held until `release` or the end of the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            EmbeddedPostgresError: another process holds it.
        """
        # Not inheritable (Python's default), or a PostgreSQL that outlives us would keep it.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise EmbeddedPostgresError(
                f"{self._path.parent} is in use by another Tessera process (process ID {holder})"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; nothing happens without it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
