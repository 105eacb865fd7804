"""Under which account PostgreSQL runs: our own, or an unprivileged one when we are root, which it refuses."""

import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.embedded_postgres.errors import EmbeddedPostgresError

# A dedicated account first, so that nothing else on the machine shares the files' owner.
CANDIDATES = ("tessera", "postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """A system account that is not root."""

    name: str
    uid: int
    gid: int

    def process_arguments(self) -> Mapping[str, Any]:
        """What `subprocess` needs to run a program under the account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give a file or directory to the account."""
        os.chown(path, self.uid, self.gid)

    def can_reach(self, path: Path) -> bool:
        """Whether the mode bits of all directories above `path` let the account through."""
        return all(self._may_enter(parent) for parent in path.resolve().parents)

    def _may_enter(self, directory: Path) -> bool:
        status = directory.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def find_account(cluster: Path) -> Account | None:
    """The account to run under, or None for our own.

    An existing cluster's owner decides, because PostgreSQL accepts no other.

    Raises:
        EmbeddedPostgresError: we are root and there is no account to change to, or the cluster is somebody else's.
    """
    owner = cluster.stat().st_uid if cluster.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner != os.geteuid():
            raise EmbeddedPostgresError(
                f"{cluster} belongs to {_by_uid(owner).name}; run Tessera as that user or as root"
            )
        return None
    if owner:
        return _by_uid(owner)
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root, and there is none of the accounts " + ", ".join(CANDIDATES)
    )


def _by_uid(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), uid, uid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
