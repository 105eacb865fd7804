"""One child process: started, watched, started again when it dies."""

import asyncio
import ctypes
import signal
import sys
from collections.abc import Callable, Mapping
from enum import Enum

import aiohttp
import structlog

from services.cluster.plan import PlannedProcess
from tessera.clock import Clock

log = structlog.get_logger(__name__)

FIRST_BACK_OFF_SECONDS = 0.5
MAX_BACK_OFF_SECONDS = 30.0
STEADY_SECONDS = 60.0  # who lived so long begins again with the shortest back-off
STARTING_PROBE_SECONDS = 0.1
PROBE_SECONDS = 2.0
PROBE_TIMEOUT_SECONDS = 4.0
KILL_SECONDS = 10.0  # beyond its drain a process is not waited for any longer
_PR_SET_PDEATHSIG = 1


class State(Enum):
    """What a child is doing."""

    STARTING = "starting"
    READY = "ready"
    UNREADY = "not ready"
    WAITING = "waiting to start again"
    ENDED = "ended"


class ChildProcess:
    """A `tessera run`, for as long as the cluster runs.

    Args:
        environment: of the process.
        drain_seconds: how long it may take to end.
        on_change: told after each change of state.
    """

    def __init__(
        self,
        planned: PlannedProcess,
        environment: Mapping[str, str],
        clock: Clock,
        *,
        drain_seconds: float,
        on_change: Callable[["ChildProcess"], None],
    ) -> None:
        self.planned = planned
        self.state = State.STARTING
        self.restarts = 0
        self._environment = dict(environment)
        self._clock = clock
        self._drain_seconds = drain_seconds
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._died = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """While it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def is_ready(self) -> bool:
        """Whether it wants requests, as far as is known."""
        return self.state is State.READY

    def suspect(self) -> None:
        """It did not take a connection: no request for it until it was asked again."""
        if self.state is State.READY:
            self._set_state(State.UNREADY)

    async def wait_ready(self) -> bool:
        """Until it is ready for the first time; False if it ended before."""
        waiting = [asyncio.create_task(event.wait()) for event in (self._ready, self._died)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return self._ready.is_set()

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Run until `stop`, with a back-off that grows with each early death."""
        back_off = FIRST_BACK_OFF_SECONDS
        while not self._stopping.is_set():
            started = self._clock.monotonic()
            self._set_state(State.STARTING)
            status = await self._run_once(http)
            self._died.set()
            if self._stopping.is_set():
                break
            if self._clock.monotonic() - started > STEADY_SECONDS:
                back_off = FIRST_BACK_OFF_SECONDS
            log.warning("a process died", name=self.planned.name, status=status, again_in_seconds=back_off)
            self.restarts += 1
            self._set_state(State.WAITING)
            try:
                async with asyncio.timeout(back_off):
                    await self._stopping.wait()
            except TimeoutError:
                back_off = min(2 * back_off, MAX_BACK_OFF_SECONDS)
        self._set_state(State.ENDED)

    async def stop(self) -> None:
        """SIGTERM; SIGKILL if it does not end in its time."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._set_state(State.UNREADY)
        process.terminate()
        try:
            async with asyncio.timeout(2 * self._drain_seconds + KILL_SECONDS):
                await process.wait()
        except TimeoutError:
            log.warning("a process did not end", name=self.planned.name)
            process.kill()
            await process.wait()

    async def _run_once(self, http: aiohttp.ClientSession) -> int:
        self.planned.log.parent.mkdir(parents=True, exist_ok=True)
        with self.planned.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.planned.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends them in order
                preexec_fn=end_with_parent,
            )
        if self._stopping.is_set():
            self._process.terminate()
        probing = asyncio.create_task(self._probe_for_ever(http))
        try:
            return await self._process.wait()
        finally:
            probing.cancel()
            await asyncio.wait([probing])

    async def _probe_for_ever(self, http: aiohttp.ClientSession) -> None:
        while True:
            await self._clock.sleep(PROBE_SECONDS if self.state is State.READY else STARTING_PROBE_SECONDS)
            is_ready = await self._probe(http)
            if self._stopping.is_set():
                return
            if is_ready:
                self._ready.set()
                self._set_state(State.READY)
            elif self.state is State.READY:
                self._set_state(State.UNREADY)

    async def _probe(self, http: aiohttp.ClientSession) -> bool:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_SECONDS)
        try:
            async with http.get(f"{self.planned.url}/ready", timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _set_state(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            log.info("process", name=self.planned.name, state=state.value, pid=self.pid)
            self._on_change(self)


def end_with_parent() -> None:
    """Ask Linux to send SIGTERM when the supervisor is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
