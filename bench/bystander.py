"""How long a server keeps others waiting while it works: a process that asks for something small all the time."""

import http.client
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

PAUSE_SECONDS = 0.002
PATH = "/_matrix/client/versions"


class Bystander:
    """Asks between `start` and `stop`, which says the longest time in milliseconds until an answer was there."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def start(self) -> None:
        """Begin to ask."""
        self._pipe.send("start")

    def stop(self) -> float:
        """Ask no more."""
        self._pipe.send("stop")
        longest: float = self._pipe.recv()
        return longest


@contextmanager
def standing_by(base_url: str) -> Iterator[Bystander]:
    """A process of its own, so that what the measuring client does is not taken for the server's."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask, args=(urlsplit(base_url).netloc, theirs), daemon=True)
    process.start()
    try:
        yield Bystander(ours)
    finally:
        process.terminate()
        process.join()


def _ask(netloc: str, pipe: Connection) -> None:
    connection = http.client.HTTPConnection(netloc, timeout=30)
    while pipe.recv() == "start":
        longest = 0.0
        while not pipe.poll(PAUSE_SECONDS):
            started = time.perf_counter()
            connection.request("GET", PATH)
            connection.getresponse().read()
            longest = max(longest, time.perf_counter() - started)
        pipe.recv()
        pipe.send(longest * 1000)
