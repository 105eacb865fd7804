"""nginx in front of a small cluster is kept alive. A stand-in for it listens in a worker, as nginx does."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from services.cluster.nginx_process import NginxProcess
from services.cluster.plan import free_ports
from services.cluster.process import FIRST_BACK_OFF_SECONDS
from tessera.clock import FakeClock
from tessera.config import Listener
from tessera.service import CannotStart

# The master waits for its end; the worker, in the same process group, has the port and says who it is.
STAND_IN = """
import os, signal, socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=False)
master = os.getpid()
worker = os.fork()
if worker:
    signal.signal(signal.SIGTERM, lambda *_: (os.kill(worker, signal.SIGKILL), sys.exit(0)))
    signal.pause()
while True:
    connection, _ = listening.accept()
    connection.sendall(str(master).encode())
    connection.close()
"""


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def nginx(tmp_path: Path, port: int) -> tuple[NginxProcess, FakeClock]:
    script, clock = tmp_path / "stand_in.py", FakeClock()
    script.write_text(STAND_IN)
    listener = Listener(port=port, bind_addresses=("127.0.0.1",), resources=())
    return NginxProcess((sys.executable, str(script), str(port)), [listener], clock), clock


async def who_answers(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    told = await reader.read()
    writer.close()
    return int(told)


async def is_refused(port: int) -> bool:
    try:
        await who_answers(port)
    except (OSError, ValueError):  # ValueError: it was killed before it said who it is
        return True
    return False


async def test_one_that_dies_is_begun_anew_without_its_workers(
    nginx: tuple[NginxProcess, FakeClock], port: int
) -> None:
    process, clock = nginx
    assert await process.start() == [f"http://127.0.0.1:{port}"]
    first = process.pid
    assert first is not None
    assert await who_answers(port) == first
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(20):
        while not process.restarts:  # noqa: ASYNC110 -- another process
            await asyncio.sleep(0.02)
        # Nobody else has the port: not even the worker of the one that died.
        while not await is_refused(port):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await clock.advance(FIRST_BACK_OFF_SECONDS)
        while await is_refused(port):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await who_answers(port) == process.pid != first
    await process.close()
    await process.finish()
    assert process.restarts == 1
    assert await is_refused(port)


async def test_one_that_does_not_begin_is_told(tmp_path: Path, port: int) -> None:
    listener = Listener(port=port, bind_addresses=("127.0.0.1",), resources=())
    process = NginxProcess((sys.executable, "-c", "raise SystemExit(1)"), [listener], FakeClock())
    with pytest.raises(CannotStart, match="does not start"):
        await process.start()
