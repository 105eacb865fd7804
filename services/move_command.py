"""`tessera partitions move` and `clean`: partitions from one room shard to another, while everything runs."""

from typing import Annotated

import typer

from services.command_line import DEFAULT_CONFIG, ConfigOption, console, read_config, run_to_end, set_up_logging
from tessera.clock import SystemClock
from tessera.moving import CannotMove, PartitionMover, clean_up
from tessera.service import CannotStart


def move_command(
    partitions: Annotated[list[int], typer.Argument(help="their numbers")],
    to: Annotated[str, typer.Option("--to", help="a name of tessera.shards", metavar="SHARD")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Move partitions to another room shard, one after the other; sends there wait for some seconds.

    A move that was cut off goes on when it is asked for again; --to the shard that it began in takes it back.
    """
    settings = read_config(config)
    set_up_logging(settings)

    async def run() -> None:
        from services.stores import running_stores

        async with running_stores(settings, "partitions") as stores:
            if wrong := [partition for partition in partitions if not 0 <= partition < stores.shards.partitions]:
                raise CannotStart(f"there is no partition {wrong[0]}; they are 0 to {stores.shards.partitions - 1}")
            mover = PartitionMover(stores.accounts, stores.shards.databases, SystemClock(), console.print)
            for partition in dict.fromkeys(partitions):
                try:
                    if not await mover.move(partition, to):
                        console.print(f"partition {partition}: lies in {to}")
                except CannotMove as error:
                    raise CannotStart(str(error)) from error
        console.print("`tessera partitions clean` deletes what they left, a minute from now or later")

    run_to_end(run)


def clean_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Delete what moved partitions have left in the shards where they lay before."""
    settings = read_config(config)
    set_up_logging(settings)

    async def run() -> None:
        from services.stores import running_stores

        async with running_stores(settings, "partitions") as stores:
            shards = stores.shards
            if not await clean_up(stores.accounts, shards.databases, shards.partitions, console.print):
                raise CannotStart("some rows are too young to be deleted: run it once more in a minute")

    run_to_end(run)
