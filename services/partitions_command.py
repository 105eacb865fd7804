"""`tessera partitions`: who writes which partition, and how to change that while everything runs."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from services.command_line import DEFAULT_CONFIG, ConfigOption, console, read_config, run_to_end, set_up_logging
from services.move_command import clean_command, move_command
from services.restored_command import restored_command
from tessera.config import KafkaSettings, Settings
from tessera.service import CannotStart
from tessera.storage import leases
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.partitions import PartitionRow, list_partitions

if TYPE_CHECKING:
    from services.stores import Stores

app = typer.Typer(no_args_is_help=True, help=__doc__)
app.command("move")(move_command)
app.command("clean")(clean_command)
app.command("restored")(restored_command)
WAIT_SECONDS = 30.0  # for a writer to do what it was asked; it looks once a second
LOOK_SECONDS = 0.2
TABLE_WIDTH = 120
WriterName = Annotated[str, typer.Argument(help="as `list` shows it")]


@app.command("list")
def list_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Show every partition: where it lies, who writes it, and how far everybody is behind."""
    settings = _settings(config)

    async def run() -> None:
        from services.stores import running_stores

        rows: dict[str, list[PartitionRow]] = {}
        away: dict[str, list[int]] = {}
        async with running_stores(settings, "partitions", without_shards=True) as stores:
            for shard, database in stores.shards.databases.items():
                try:
                    rows[shard] = await _rows(database)
                except (DatabaseUnavailable, OSError, TimeoutError) as error:
                    away[shard] = stores.shards.partitions_of(shard)
                    console.print(f"[yellow]shard {shard} is away: {escape(str(error))}[/yellow]")
        undone = await _undone(settings.tessera.kafka, [row for part in rows.values() for row in part])
        names = ("partition", "shard", "writer", "epoch", "incarnation", "head", "unannounced", "done", "undone")
        table = Table(*names, box=None)
        for shard, part in rows.items():
            for row in part:
                table.add_row(*_line(shard, row, undone.get(row.partition)))
        for shard, partitions in away.items():
            for partition in partitions:
                table.add_row(str(partition), shard, "[red]shard away[/red]")
        console.print(table, width=max(console.width, TABLE_WIDTH), crop=False)  # one line each, in files too

    run_to_end(run)


@app.command("handover")
def handover_command(
    partition: Annotated[int, typer.Argument(help="its number")],
    writer: WriterName,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Have a partition handed over to a living writer; sends there pause for less than a second."""
    settings = _settings(config)

    async def run() -> None:
        from services.stores import running_stores

        async with running_stores(settings, "partitions") as stores:
            if not 0 <= partition < stores.shards.partitions:
                raise CannotStart(f"there is no partition {partition}; they are 0 to {stores.shards.partitions - 1}")
            database = stores.shards.of_partition(partition)
            await _require_writer(database, writer)
            async with database.reading() as tx:
                if not await leases.ask_hand_over(tx, partition, writer):
                    raise CannotStart(f"nobody writes partition {partition} now; a living writer takes it by itself")
            await _until_written_by(database, partition, writer)
            console.print(f"{writer} writes partition {partition}")

    run_to_end(run)


@app.command("drain")
def drain_command(
    writer: WriterName,
    config: ConfigOption = DEFAULT_CONFIG,
    off: Annotated[bool, typer.Option("--off", help="let it take its share again")] = False,
) -> None:
    """Have a writer give all its partitions to the others; it goes on running and takes none until --off."""
    settings = _settings(config)

    async def run() -> None:
        from services.stores import running_stores

        async with running_stores(settings, "partitions") as stores:
            databases = list(stores.shards.databases.values())
            asked = [await _ask_draining(database, writer, draining=not off) for database in databases]
            if not any(asked):
                raise CannotStart(f"there is no writer {writer}; {await _known_writers(stores)}")
            if off:
                console.print(f"{writer} takes its share again")
                return
            await asyncio.gather(*(_until_drained(database, writer) for database in databases))
            console.print(f"{writer} writes nothing any more")

    run_to_end(run)


def _settings(config: ConfigOption) -> Settings:
    settings = read_config(config)
    set_up_logging(settings)
    return settings


async def _rows(database: Database) -> list[PartitionRow]:
    async with database.reading() as tx:
        return await list_partitions(tx)


def _line(shard: str, row: PartitionRow, undone: int | None) -> tuple[str, ...]:
    if row.state != "active":
        writer = f"[dim]{row.state}[/dim]"
    elif not row.writer:
        writer = "[red]nobody[/red]"
    else:
        writer = row.writer if row.is_alive else f"[red]{row.writer}, gone[/red]"
    if row.heir:
        writer += f" → {row.heir}"
    numbers = (row.epoch, row.incarnation, row.head, row.head - row.announced, row.done_offset)
    return (str(row.partition), shard, writer, *map(str, numbers), "" if undone is None else str(undone))


async def _undone(kafka: KafkaSettings | None, rows: Sequence[PartitionRow]) -> Mapping[int, int]:
    """How many commands lie behind each partition's done offset; nothing without Kafka, or while it is away."""
    if kafka is None:
        return {}
    from tessera.bus import BusUnavailable
    from tessera.bus.kafka import KafkaConnection
    from tessera.bus.kafka.topics import COMMANDS

    connection = KafkaConnection(kafka, "tessera-partitions")
    topic = connection.topic(COMMANDS)
    try:
        found = (await connection.describe_topics([topic])).get(topic)
        known = [row for row in rows if row.state == "active" and found is not None]
        ranges = await connection.offset_ranges(topic, [row.partition for row in known])
    except BusUnavailable as error:
        console.print(f"[yellow]undone commands are not known: {error}[/yellow]")
        return {}
    finally:
        await connection.close()
    undone: dict[int, int] = {}
    for row in known:
        there = ranges[row.partition]
        # Offsets of another topic than this one mean nothing: all that lies in this one is undone.
        is_same = found is not None and row.topic_id == found.topic_id
        undone[row.partition] = there.end - max(there.start, row.done_offset + 1 if is_same else 0)
    return undone


async def _require_writer(database: Database, name: str) -> None:
    async with database.reading() as tx:
        writers = await leases.list_writers(tx)
    if name not in {writer.name for writer in writers}:
        living = ", ".join(sorted({writer.name for writer in writers})) or "nobody"
        raise CannotStart(f"there is no living writer {name} in that shard; there is {living}")


async def _known_writers(stores: "Stores") -> str:
    names: set[str] = set()
    for database in stores.shards.databases.values():
        async with database.reading() as tx:
            names |= {writer.name for writer in await leases.list_writers(tx)}
    return f"there is {', '.join(sorted(names))}" if names else "there is none at all"


async def _ask_draining(database: Database, name: str, *, draining: bool) -> bool:
    async with database.reading() as tx:
        return await leases.set_draining(tx, name, draining=draining)


async def _until_written_by(database: Database, partition: int, name: str) -> None:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                row = next(row for row in await _rows(database) if row.partition == partition)
                if row.writer == name:
                    return
                if not row.heir:
                    raise CannotStart(f"partition {partition} was not handed over; the log of {row.writer} says why")
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise CannotStart(f"partition {partition} was not handed over in {WAIT_SECONDS:.0f} s") from None


async def _until_drained(database: Database, name: str) -> None:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                async with database.reading() as tx:
                    writers = await leases.list_writers(tx)
                own = [writer for writer in writers if writer.name == name]
                if not any(writer.partitions for writer in own):
                    return
                if all(writer.is_draining for writer in writers):
                    raise CannotStart("there is no other writer that could take the partitions; they stay")
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise CannotStart(
            f"{name} still writes some partitions after {WAIT_SECONDS:.0f} s; it goes on giving"
        ) from None
