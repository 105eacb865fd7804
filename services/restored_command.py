"""`tessera partitions restored`: what a restore from a backup has to tell, where no topic tells it."""

from services.command_line import DEFAULT_CONFIG, ConfigOption, console, read_config, run_to_end, set_up_logging
from tessera.ids import IdSource
from tessera.service import CannotStart
from tessera.storage import leases, partitions
from tessera.storage.shards import RoomShards

STEPS = 16


def restored_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Begin a new incarnation of every partition, after a restore of room shards without the topics of their time.

    All processes must be stopped. Clients then get all rooms as limited, and projections are made anew.
    """
    settings = read_config(config)
    set_up_logging(settings)

    async def run() -> None:
        from services.stores import running_stores

        async with running_stores(settings, "partitions") as stores:
            count = await begin_anew(stores.shards, IdSource())
        console.print(f"{count} partitions begin a new incarnation")

    run_to_end(run)


async def begin_anew(shards: RoomShards, ids: IdSource) -> int:
    """Raise the incarnations of all partitions; how many they are.

    By how much is drawn: a backup that is restored twice would otherwise come to the same incarnation twice, and
    tokens of the first would count in the second.

    Raises:
        CannotStart: a writer runs.
    """
    for database in shards.databases.values():
        async with database.reading() as tx:
            if writers := await leases.list_writers(tx):
                names = ", ".join(sorted({writer.name for writer in writers}))
                raise CannotStart(f"stop all processes first: {names} writes")
    step = 1 + ids.random_bytes(1)[0] % STEPS
    count = 0
    for database in shards.databases.values():
        async with database.transaction() as tx:
            count += await partitions.begin_anew(tx, step)
    return count
