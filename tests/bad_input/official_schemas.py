"""Requests made from the specification's OpenAPI files, right and wrong ones, against a server process.

`python -m tests.bad_input.official_schemas --api DIR`: DIR is the folder `data/api` of the specification, with
`client-server` and `server-server` in it. The law: no failure of the server, an answer within ten seconds, and no
status that the operation's file does not list unless `allowed_answers.py` says why. Exit status 1 where it is broken.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.bad_input.schema_operations import INVALID, VALID, Operation, read_operations
from tests.bad_input.schema_report import report
from tests.bad_input.schema_requests import Shooter, Tally
from tests.bad_input.schema_world import World, running_world

APIS = ("client-server", "server-server")


def callers(operation: Operation) -> Iterator[str]:
    """Who asks: somebody without a token or signature, and those who have one."""
    yield "nobody"
    if operation.api == "server-server":
        yield "peer"
        return
    yield "user"
    if "/admin/" in operation.path:
        yield "administrator"


def shoot_all(world: World, operations: Iterable[Operation], count: int, start: int) -> list[Tally]:
    """Every operation, by every caller, with valid and invalid requests."""
    shooter = Shooter(world)
    tallies = []
    for operation in operations:
        tally = Tally(operation)
        for caller in callers(operation):
            for mode in (VALID, INVALID):
                shooter.fire_at(operation, mode, caller, count, start, tally)
        tallies.append(tally)
        print(
            f"{operation.label}: {tally.sent} requests, {dict(sorted(tally.statuses.items()))}, "
            f"slowest {tally.slowest_seconds * 1000:.0f} ms, {len(tally.findings)} findings",
            flush=True,
        )
    return tallies


async def run(arguments: argparse.Namespace) -> int:
    operations = [
        operation
        for operation in read_operations(arguments.api, APIS)
        if not arguments.only or arguments.only in operation.label
    ]
    if not operations:
        print(f"no operations below {arguments.api}", file=sys.stderr)
        return 2
    started = time.monotonic()
    running = asyncio.current_task()
    assert running is not None
    # Whoever ends the run ends the server with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with tempfile.TemporaryDirectory() as folder:
        async with running_world(Path(folder)) as world:
            tallies = await asyncio.to_thread(shoot_all, world, operations, arguments.count, arguments.seed)
    text = report(tallies, count=arguments.count, seconds=time.monotonic() - started)
    if arguments.report:
        arguments.report.write_text(text)
    print(text)
    return 1 if any(tally.findings for tally in tallies) else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--api", type=Path, required=True, help="the specification's folder of OpenAPI files")
    parser.add_argument("--count", type=int, default=25, help="requests an operation, caller and kind of data")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other requests")
    parser.add_argument("--only", help="operations with this in their method and path")
    parser.add_argument("--report", type=Path, help="write the report there as Markdown")
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
