"""`tessera dead-letters`: commands that broke the writer, and what becomes of them."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from services.command_line import DEFAULT_CONFIG, ConfigOption, console, fail, read_config, run_to_end, set_up_logging
from tessera.storage import dead_letters
from tessera.storage.database import Transaction
from tessera.storage.dead_letters import DeadLetter

app = typer.Typer(no_args_is_help=True, help=__doc__)
LISTED = 200
CommandId = Annotated[str, typer.Argument(help="as `list` shows it, or its first characters")]


@app.command("list")
def list_command(
    config: ConfigOption = DEFAULT_CONFIG,
    settled: Annotated[bool, typer.Option("--all", help="also those replayed and dropped")] = False,
) -> None:
    """Show the dead letters of every shard, oldest first."""
    settings = read_config(config)
    set_up_logging(settings)

    async def run() -> None:
        from services.stores import running_stores

        table = Table("id", "since", "shard", "partition", "room", "state", "error", box=None)
        async with running_stores(settings, "dead-letters") as stores:
            for shard, database in stores.shards.databases.items():
                async with database.reading() as tx:
                    letters = await dead_letters.list_dead_letters(tx, LISTED, settled=settled)
                for letter in letters:
                    table.add_row(*_line(shard, letter))
        if table.row_count:
            console.print(table)
        else:
            console.print("there are no dead letters")

    run_to_end(run)


@app.command("replay")
def replay_command(command_id: CommandId, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Give a command another try; a running writer does it within ten seconds."""
    _settle(config, command_id, dead_letters.request_replay, "will be replayed")


@app.command("drop")
def drop_command(command_id: CommandId, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Settle a dead letter without another try; its row stays."""
    _settle(config, command_id, dead_letters.drop, "is dropped")


def _line(shard: str, letter: DeadLetter) -> tuple[str, ...]:
    since = datetime.fromtimestamp(letter.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    error = letter.error.splitlines()[0][:80] if letter.error else ""
    return letter.command_id.hex()[:16], since, shard, str(letter.partition), letter.room_id, letter.state, error


def _settle(
    config: ConfigOption, wanted: str, settle: Callable[[Transaction, bytes], Awaitable[bool]], became: str
) -> None:
    settings = read_config(config)
    set_up_logging(settings)

    async def run() -> None:
        from services.stores import running_stores

        async with running_stores(settings, "dead-letters") as stores:
            found = []
            for database in stores.shards.databases.values():
                async with database.reading() as tx:
                    letters = await dead_letters.list_dead_letters(tx, LISTED)
                found += [(database, one) for one in letters if one.command_id.hex().startswith(wanted.lower())]
            if len(found) != 1:
                fail(f"{len(found) or 'no'} dead letters have an id that begins with {wanted}")
            database, letter = found[0]
            async with database.reading() as tx:
                if not await settle(tx, letter.command_id):
                    fail(f"{wanted} is {letter.state} already")
            console.print(f"{letter.command_id.hex()[:16]} {became}")

    run_to_end(run)
