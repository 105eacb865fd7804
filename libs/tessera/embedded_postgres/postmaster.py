"""The running server process: found through its pid file, recognised, and stopped."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.01

# Fast: sessions are ended and all is written. Immediate: as after a crash. Last the kernel.
_SIGNALS = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True, slots=True)
class PidFile:
    """What a server says about itself in postmaster.pid."""

    pid: int
    port: int
    ready: bool


def read_pid_file(cluster: Path) -> PidFile | None:
    """The pid file of a cluster; None if there is none, or it is not complete yet."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        # pid, data directory, start time, port, socket directory, address, shared memory, status
        return PidFile(int(lines[0]), int(lines[3]), len(lines) > 7 and lines[7].strip() == "ready")
    except (FileNotFoundError, IndexError, ValueError):
        return None


def command_line(pid: int) -> list[str] | None:
    """The arguments that a process was started with; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    listed = subprocess.run(  # noqa: S603 -- systems without /proc
        ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
    )
    return listed.stdout.split() or None


def is_postmaster_of(pid: int, cluster: Path) -> bool:
    """Whether the process is a PostgreSQL server of this cluster, not one that got a dead server's number."""
    arguments = command_line(pid)
    if not arguments or "postgres" not in Path(arguments[0]).name:
        return False
    return str(cluster) in arguments


def runs_as_started(pid: int, command: Sequence[str]) -> bool:
    """Whether the process has these very arguments and still the program file that stands there now."""
    if command_line(pid) != list(command):
        return False
    executable = Path(f"/proc/{pid}/exe")
    try:
        return executable.samefile(command[0])
    except FileNotFoundError:
        return not Path("/proc/self").exists()  # replaced by an upgrade, or a system that cannot tell


async def stop_postmaster(pid: int, cluster: Path, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Stop a server of this cluster, more and more firmly. Bounded; False if it is still there.

    `process` is given for our own child, whose end must be collected.
    """
    for number, patience_seconds in _SIGNALS:
        if _is_gone(pid, cluster, process):
            return True
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        try:
            async with asyncio.timeout(patience_seconds):
                while not _is_gone(pid, cluster, process):  # noqa: ASYNC110 -- the end of another's child has no event
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            continue
        return True
    return False


def _is_gone(pid: int, cluster: Path, process: subprocess.Popen[bytes] | None) -> bool:
    if process is not None:
        return process.poll() is not None
    return not is_postmaster_of(pid, cluster)
