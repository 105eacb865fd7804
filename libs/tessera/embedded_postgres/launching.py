"""How PostgreSQL's programs are run: under which account, and with what in their environment."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.embedded_postgres.account import Account

_SCRIPT = Path(__file__).with_name("drop_privileges.py")


@dataclass(frozen=True, slots=True)
class Launcher:
    """Runs programs as `account`, or as ourselves if it is None.

    Attributes:
        through_closed_directories: the account cannot reach the data directory without help.
    """

    account: Account | None = None
    through_closed_directories: bool = False

    def own(self, path: Path) -> None:
        """Give a path to the account that the programs run under."""
        if self.account is not None:
            self.account.own(path)

    def run(
        self, command: Sequence[str], directory: Path, *, timeout_seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(  # noqa: S603 -- fixed programs
            self._full(command),
            cwd=directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            **self._identity(),
        )

    def start(
        self, command: Sequence[str], directory: Path, log: int, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, where the terminal's Ctrl-C does not reach it."""
        return subprocess.Popen(  # noqa: S603 -- fixed programs
            self._full(command),
            cwd=directory,
            env={**_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **self._identity(),
        )

    def _full(self, command: Sequence[str]) -> list[str]:
        if self.account is None or not self.through_closed_directories:
            return list(command)
        interpreter = [sys.executable, "-I", "-S", str(_SCRIPT)]
        return [*interpreter, str(self.account.uid), str(self.account.gid), *command]

    def _identity(self) -> Mapping[str, Any]:
        if self.account is None or self.through_closed_directories:
            return {}
        return self.account.process_arguments()


def _environment() -> dict[str, str]:
    """Only what the programs need: PG* variables of the operator must not steer them."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}
