"""The databases of a process: reached, with schemas that this release understands, and pools on them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from tessera.config import Settings
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.service import CannotStart
from tessera.storage import partitions as partition_rows
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.durability import find_unsafe_settings
from tessera.storage.migrations import Tree, migrate, require_current
from tessera.storage.placement import get_placement, settle_placement
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

Progress = Callable[[str], None]
LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Stores:
    """The databases of a running server."""

    accounts: Database
    shards: RoomShards


@asynccontextmanager
async def open_stores(settings: Settings, *, progress: Progress) -> AsyncIterator[Stores]:
    """Start or reach the databases, bring their schemas up to date, and open the pools.

    Raises:
        EmbeddedPostgresError, DatabaseUnavailable, MigrationError, PlacementMismatch: with one line.
    """
    async with AsyncExitStack() as stack:
        accounts_dsn = settings.accounts_dsn
        if accounts_dsn is None:
            progress(f"starting PostgreSQL in {settings.data_dir / 'postgres'}")
            postgres = EmbeddedPostgres(settings.data_dir / "postgres")
            await postgres.start()
            stack.push_async_callback(postgres.stop)
            accounts_dsn = postgres.dsn()
        shard_dsns = settings.shard_dsns(accounts_dsn)
        await migrate(accounts_dsn, Tree.ACCOUNTS, progress=progress)
        for dsn in dict.fromkeys(shard_dsns.values()):
            await migrate(dsn, Tree.ROOMS, progress=progress)
        accounts, shards = await _connect(stack, settings, accounts_dsn, shard_dsns, "tessera")
        async with accounts.transaction() as tx:
            placement = await settle_placement(tx, settings.tessera.partitions, list(shards))
        for name, database in shards.items():
            async with database.transaction() as tx:
                await partition_rows.add_partitions(tx, [p for p, shard in placement.items() if shard == name])
        yield Stores(accounts, RoomShards(shards, placement, settings.tessera.partitions))


@asynccontextmanager
async def reach_stores(settings: Settings, name: str) -> AsyncIterator[Stores]:
    """Open pools on databases that `tessera migrate` has prepared: one process of many changes no schema.

    Of several room shards some may be away: they are used when they are back and have been found in order.

    Args:
        name: of the process; PostgreSQL shows it in pg_stat_activity.

    Raises:
        CannotStart, DatabaseUnavailable, MigrationError, PlacementMismatch: with one line.
    """
    accounts_dsn = settings.accounts_dsn
    if accounts_dsn is None:
        raise CannotStart("separate processes need a PostgreSQL that they all reach: set tessera.accounts_dsn")
    async with _reach(settings, accounts_dsn, name, without_shards=True, shut=True) as stores:
        yield stores


@asynccontextmanager
async def running_stores(settings: Settings, name: str, *, without_shards: bool = False) -> AsyncIterator[Stores]:
    """The databases for a tool: beside the server that uses them, or with an embedded PostgreSQL started for it.

    Args:
        without_shards: whether room shards may be away; the tool meets DatabaseUnavailable when it asks one of these.

    Raises:
        EmbeddedPostgresError, DatabaseUnavailable, MigrationError, PlacementMismatch: with one line.
    """
    async with AsyncExitStack() as stack:
        accounts_dsn = settings.accounts_dsn
        if accounts_dsn is None:
            postgres = EmbeddedPostgres(settings.data_dir / "postgres")
            accounts_dsn = postgres.find_running_dsn()
            if accounts_dsn is None:
                await postgres.start()
                stack.push_async_callback(postgres.stop)
                accounts_dsn = postgres.dsn()
        yield await stack.enter_async_context(_reach(settings, accounts_dsn, name, without_shards=without_shards))


@asynccontextmanager
async def _reach(
    settings: Settings, accounts_dsn: str, name: str, *, without_shards: bool = False, shut: bool = False
) -> AsyncIterator[Stores]:
    """The pools of the databases that are there.

    Args:
        shut: whether shards that are away are kept shut until they have been looked at.
    """
    shard_dsns = settings.shard_dsns(accounts_dsn)
    names = {dsn: shard for shard, dsn in shard_dsns.items()}
    away: dict[str, str] = {}
    await require_current(accounts_dsn, Tree.ACCOUNTS)
    for dsn, shard in names.items():
        try:
            await require_current(dsn, Tree.ROOMS)
        except DatabaseUnavailable as error:
            away[dsn] = shard
            if not without_shards or dsn == accounts_dsn or (shut and len(away) == len(names)):
                raise
            log.warning("shard is away", shard=shard, error=str(error))
    async with AsyncExitStack() as stack:
        accounts, shards = await _connect(stack, settings, accounts_dsn, shard_dsns, f"tessera {name}", away, shut=shut)
        async with accounts.reading() as tx:
            placement = await get_placement(tx, settings.tessera.partitions, list(shards))
        if away and shut:
            opening = asyncio.create_task(_open_returned(settings, {dsn: shards[shard] for dsn, shard in away.items()}))
            stack.callback(opening.cancel)
        yield Stores(accounts, RoomShards(shards, placement, settings.tessera.partitions))


async def _open_returned(settings: Settings, away: dict[str, Database]) -> None:
    """Let those be used that have come back, once they are known to be what a start asks for."""
    while away:
        await asyncio.sleep(LOOK_SECONDS)  # nobody says that a database is back
        for dsn, database in tuple(away.items()):
            try:
                await require_current(dsn, Tree.ROOMS)
                probe = await Database.connect(dsn, max_size=1, pgbouncer=settings.tessera.pgbouncer)
                try:
                    await _require_durability(settings, probe, "a shard that is back")
                finally:
                    await probe.close()
            except DatabaseUnavailable:
                continue
            except Exception as error:  # an older schema, unsafe settings, gone again: whatever it is may be mended
                log.error("a shard that is back is not used", error=str(error) or type(error).__name__)
                continue
            database.open()
            del away[dsn]
            log.warning("a shard is back")


async def _connect(
    stack: AsyncExitStack,
    settings: Settings,
    accounts_dsn: str,
    shard_dsns: dict[str, str],
    application_name: str,
    away: Collection[str] = (),
    *,
    shut: bool = False,
) -> tuple[Database, dict[str, Database]]:
    """A pool for each database, however many roles it has; those that are away are connected to when they are asked."""
    pool = settings.pool
    databases: dict[str, Database] = {}
    for dsn in dict.fromkeys([accounts_dsn, *shard_dsns.values()]):
        database = await Database.connect(
            dsn,
            min_size=0 if dsn in away else pool.min_size,
            max_size=pool.max_size,
            pgbouncer=settings.tessera.pgbouncer,
            application_name=application_name,
            is_shut=shut and dsn in away,
        )
        stack.push_async_callback(database.close)
        databases[dsn] = database
        if dsn in away:
            continue
        shard = next((name for name, its_dsn in shard_dsns.items() if its_dsn == dsn), "")
        await _require_durability(settings, database, "the account store" if dsn == accounts_dsn else f"shard {shard}")
    return databases[accounts_dsn], {name: databases[dsn] for name, dsn in shard_dsns.items()}


async def _require_durability(settings: Settings, database: Database, name: str) -> None:
    """Refuse a PostgreSQL that may forget what it acknowledged, or warn of it where that is allowed."""
    unsafe = await find_unsafe_settings(database)
    if unsafe and not settings.tessera.allow_unsafe_postgres:
        raise CannotStart(f"PostgreSQL of {name}: {'; '.join(unsafe)} (tessera.allow_unsafe_postgres starts anyway)")
    if unsafe:
        log.warning("PostgreSQL may forget what it acknowledged", database=name, reasons=unsafe)
