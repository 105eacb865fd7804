"""Run many seeds of the simulation: `python tests/simulation/run_seeds.py --seeds 2000 --processes 2`.

Each process has a PostgreSQL of its own. Exit status 1 if a law broke; the seeds are printed.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).parents[2]))

from simulation import run_seed

from tessera.embedded_postgres import EmbeddedPostgres
from tessera.storage.migrations import Tree, migrate
from tests.conftest import FORGETFUL, run_sql

HASH_SEED = "0"


@dataclass(frozen=True, slots=True)
class Result:
    """How a seed ended."""

    seed: int
    error: str
    accepted: int = 0
    faults: int = 0
    virtual_seconds: float = 0.0


def main() -> int:
    """Run the seeds and tell."""
    arguments = _parser().parse_args()
    seeds: Sequence[int] = arguments.only or range(arguments.first, arguments.first + arguments.seeds)
    shares: Sequence[Sequence[int]] = [seeds[number :: arguments.processes] for number in range(arguments.processes)]
    results: list[Result] = []
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[Result | None] = context.Queue()
    workers = [context.Process(target=_work, args=(share, queue)) for share in shares]
    for worker in workers:
        worker.start()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("seeds", total=len(seeds))
        for result in _drain(queue, len(workers)):
            results.append(result)
            progress.advance(bar)
            if result.error:
                console.print(f"seed {result.seed}: {result.error}")
    broken = sorted(result.seed for result in results if result.error)
    console.print(
        f"{len(results)} seeds, {sum(r.faults for r in results)} faults, {sum(r.accepted for r in results)} accepted"
        f" sends, {sum(r.virtual_seconds for r in results) / 3600:.1f} virtual hours; broken: {broken or 'none'}"
    )
    return 1 if broken or len(results) != len(seeds) else 0


def _drain(queue: "multiprocessing.Queue[Result | None]", workers: int) -> Iterator[Result]:
    while workers:
        result = queue.get()
        if result is None:
            workers -= 1
        else:
            yield result


def _work(seeds: Sequence[int], queue: "multiprocessing.Queue[Result | None]") -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder), settings=FORGETFUL)
        asyncio.run(_start(server))
        try:
            for seed in seeds:
                queue.put(_run(seed, server))
        finally:
            asyncio.run(server.stop())
            queue.put(None)


async def _start(server: EmbeddedPostgres) -> None:
    await server.start()
    await run_sql(server, "CREATE DATABASE template_tessera")
    for tree in Tree:
        await migrate(server.dsn("template_tessera"), tree)


def _run(seed: int, server: EmbeddedPostgres) -> Result:
    asyncio.run(run_sql(server, f"CREATE DATABASE s{seed} TEMPLATE template_tessera"))
    try:
        return _run_apart(seed, server.dsn(f"s{seed}"))
    finally:
        asyncio.run(run_sql(server, f"DROP DATABASE s{seed} WITH (FORCE)"))


def _run_apart(seed: int, dsn: str) -> Result:
    """In a process of its own, where nothing is left of other seeds: it goes as it would alone."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_run_once, args=(seed, dsn, sending))
    child.start()
    sending.close()
    try:
        result: Result = receiving.recv()
    except EOFError:
        result = Result(seed, "the process ended")
    child.join()
    return result


def _run_once(seed: int, dsn: str, sending: "Connection[Result, Result]") -> None:
    try:
        report = run_seed(seed, dsn)
    except Exception as error:  # whatever it is: the seed is red, and the others go on
        sending.send(Result(seed, f"{type(error).__name__}: {error}"))
    else:
        sending.send(Result(seed, "", report.accepted, len(report.faults), report.virtual_seconds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--processes", type=int, default=2)
    return parser


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:  # sets of strings have the same order in every run, too
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": HASH_SEED})
    sys.exit(main())
