"""nginx in a process of its own, started again when it dies."""

import asyncio
import os
import signal
from collections.abc import Sequence

import structlog

from services.cluster.process import (
    FIRST_BACK_OFF_SECONDS,
    MAX_BACK_OFF_SECONDS,
    STEADY_SECONDS,
    end_with_parent,
)
from tessera.clock import Clock
from tessera.config import Listener
from tessera.service import CannotStart

log = structlog.get_logger(__name__)

START_SECONDS = 10.0
LOOK_SECONDS = 0.05


class NginxProcess:
    """nginx, for as long as the cluster runs.

    Args:
        command: how it is started, in the foreground.
        listeners: where it listens then.
    """

    def __init__(self, command: Sequence[str], listeners: Sequence[Listener], clock: Clock) -> None:
        self.restarts = 0
        self._command = command
        self._listeners = listeners
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """While it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> list[str]:
        """Answer requests, from now on until `close`; where.

        Raises:
            CannotStart: it ends at once, or does not listen.
        """
        process = await self._begin()
        for listener in self._listeners:
            await self._until_listening(process, listener)
        self._keeping = asyncio.create_task(self._keep(process))
        return [
            f"unix:{listener.path}"
            if listener.path is not None
            else f"{'https' if listener.tls else 'http'}://{f'[{a}]' if ':' in a else a}:{listener.port}"
            for listener in self._listeners
            for a in (listener.bind_addresses if listener.path is None else ("",))
        ]

    async def close(self) -> None:
        """SIGQUIT would wait for parked polls, which the processes behind answer only when they end."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if self.pid is not None:
            assert self._process is not None
            self._process.terminate()

    async def finish(self) -> None:
        """Wait for its end."""
        if self._process is not None:
            await self._process.wait()

    async def _begin(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, start_new_session=True, preexec_fn=end_with_parent
        )
        return self._process

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        """Run for ever: begin anew what has died, with a back-off that grows with each early death."""
        back_off = FIRST_BACK_OFF_SECONDS
        while True:
            started = self._clock.monotonic()
            status = await process.wait()
            _end_workers(process.pid)
            if self._clock.monotonic() - started > STEADY_SECONDS:
                back_off = FIRST_BACK_OFF_SECONDS
            log.warning("nginx died", status=status, again_in_seconds=back_off)
            self.restarts += 1
            await self._clock.sleep(back_off)
            back_off = min(2 * back_off, MAX_BACK_OFF_SECONDS)
            try:
                process = await self._begin()
            except OSError as error:
                log.warning("nginx does not start", error=str(error))

    async def _until_listening(self, process: asyncio.subprocess.Process, listener: Listener) -> None:
        address = next((a for a in listener.bind_addresses if ":" not in a), listener.bind_addresses[0])
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    if process.returncode is not None:
                        raise CannotStart("nginx does not start; its reason is above")
                    try:
                        if listener.path is not None:
                            _, writer = await asyncio.open_unix_connection(listener.path)
                        else:
                            _, writer = await asyncio.open_connection(address, listener.port)
                    except OSError:
                        await asyncio.sleep(LOOK_SECONDS)
                        continue
                    writer.close()
                    return
        except TimeoutError:
            raise CannotStart("nginx does not listen") from None


def _end_workers(leader: int) -> None:
    """The workers of a killed master live on, and have its ports; they are in its process group."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
