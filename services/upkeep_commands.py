"""`tessera rebuild` and `tessera verify`: projections made anew, and all that is stored looked through, online."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from services.command_line import DEFAULT_CONFIG, ConfigOption, console, fail, read_config, run_to_end, set_up_logging

if TYPE_CHECKING:
    from rich.progress import Progress

    from services.stores import Stores
    from tessera.config import Settings

PROJECTIONS = ("memberships", "directory", "search", "people")
SHOWN_FAULTS = 50
Partitions = Annotated[list[int] | None, typer.Option("--partition", help="only this one; may be given more than once")]


def rebuild_command(
    projection: Annotated[str, typer.Argument(help="|".join((*PROJECTIONS, "all")))] = "all",
    config: ConfigOption = DEFAULT_CONFIG,
    partition: Partitions = None,
) -> None:
    """Make projections anew from the room shards, while the server runs."""
    if projection not in (*PROJECTIONS, "all"):
        fail(f"there is no projection {projection}; there are {', '.join(PROJECTIONS)}")
    settings = read_config(config)
    set_up_logging(settings)

    async def run() -> None:
        from services.stores import running_stores

        async with running_stores(settings, "rebuild") as stores:
            chosen = _choose(stores, partition)
            for name in PROJECTIONS if projection == "all" else (projection,):
                rooms, changed = await _rebuild(settings, stores, name, chosen)
                console.print(f"{name}: {rooms} rooms looked at, {changed} lines written")

    run_to_end(run)


def verify_command(
    config: ConfigOption = DEFAULT_CONFIG,
    partition: Partitions = None,
    hashes: Annotated[bool, typer.Option(help="compute every event's ID again")] = True,
) -> None:
    """Look through what is stored, while the server runs; exit status 1 if something is not as it must be."""
    settings = read_config(config)
    set_up_logging(settings)

    async def run() -> None:
        from services.stores import running_stores

        async with running_stores(settings, "verify") as stores:
            faults = await _verify(settings, stores, _choose(stores, partition), hashes=hashes)
        if faults:
            fail(f"{faults} faults; projections are mended by `tessera rebuild`")

    run_to_end(run)


def _choose(stores: "Stores", wanted: list[int] | None) -> Sequence[int]:
    everything = range(stores.shards.partitions)
    if wanted is None:
        return everything
    if unknown := [one for one in wanted if one not in everything]:
        fail(f"there is no partition {unknown[0]}; there are {len(everything)}")
    return wanted


async def _rebuild(settings: "Settings", stores: "Stores", name: str, partitions: Sequence[int]) -> tuple[int, int]:
    from matrixcore.identifiers import ServerName
    from tessera.fanout import LocalFanout
    from tessera.rebuilding import Rebuilder
    from tessera.remote_people import PeopleRebuilder
    from tessera.search_rebuilding import SearchRebuilder

    # Nobody hears of it from here: the sync services compare the heads of user logs each half minute.
    rebuilder = Rebuilder(stores.accounts, stores.shards, LocalFanout(), ServerName(settings.server_name))
    steps = {
        "memberships": rebuilder.rebuild_memberships,
        "directory": rebuilder.rebuild_directory,
        "search": SearchRebuilder(stores.shards).rebuild,
        "people": PeopleRebuilder(stores.accounts, stores.shards, ServerName(settings.server_name)).rebuild,
    }[name]
    rooms = changed = 0
    with _progress() as progress:
        bar = progress.add_task(name, total=len(partitions))
        for partition in partitions:
            async for page in steps([partition]):
                rooms += page.rooms
                changed += page.changed
            progress.advance(bar)
    return rooms, changed


async def _verify(settings: "Settings", stores: "Stores", partitions: Sequence[int], *, hashes: bool) -> int:
    from matrixcore.identifiers import ServerName
    from tessera.clock import SystemClock
    from tessera.verifying import Verifier

    clock = SystemClock()
    verifier = Verifier(stores.accounts, stores.shards, ServerName(settings.server_name), clock, hashes)
    rooms = events = faults = 0
    with _progress() as progress:
        bar = progress.add_task("partitions", total=len(partitions))
        async for verified in verifier.verify(partitions):
            rooms += verified.rooms
            events += verified.events
            for fault in verified.faults:
                faults += 1
                if faults <= SHOWN_FAULTS:
                    console.print(f"[red]{fault.check}[/red] {fault.what}")
            progress.advance(bar)
    console.print(f"{len(partitions)} partitions, {rooms} rooms, {events} events: {faults or 'no'} faults")
    return faults


def _progress() -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)
