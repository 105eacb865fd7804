"""Puts the room writer together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from matrixcore.identifiers import ServerName
from services.rooms.replaying import replay_requested
from services.rooms.service import RoomWriter
from tessera.clock import Clock
from tessera.service import CannotStart, Service, Surroundings
from tessera.storage import leases
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.leases import LEASE_SECONDS
from tessera.storage.shards import RoomShards

NAME_SECONDS = LEASE_SECONDS + 1  # a process that was killed is forgotten by then
LOOK_SECONDS = 0.25


@asynccontextmanager
async def open_rooms(around: Surroundings) -> AsyncIterator[Service]:
    """The writer of its share of the partitions; at the end whatever has been taken gets its outcome.

    Raises:
        CannotStart: another living process has this one's name.
    """
    if around.is_shared:
        await require_own_name(around.shards, around.name, around.clock)
    writer = RoomWriter(
        server_name=ServerName(around.settings.server_name),
        signing_key=around.signing_key,
        shards=around.shards,
        commands=around.commands,
        records=around.records,
        fanout=around.fanout,
        clock=around.clock,
        ids=around.ids,
        name=around.name,
        session_locks=not around.settings.tessera.pgbouncer,
    )

    async def replay() -> None:
        await replay_requested(around.shards, around.commands, around.clock)

    try:
        service = Service(
            checks={"leases": writer.check_leases}, background=(writer.run, replay), wait_started=writer.wait_ready
        )
        yield replace(service, drain=writer.drain) if around.is_shared else service
    finally:
        await writer.stop()


async def require_own_name(shards: RoomShards, name: str, clock: Clock) -> None:
    """Return when no other living writer has a name; of one that was killed the lease is waited for.

    Partitions are handed over by name: those meant for the one process would go to the other. A shard that is away
    knows nobody.

    Raises:
        CannotStart: another writer is alive under it.
    """
    deadline = clock.monotonic() + NAME_SECONDS
    for database in shards.databases.values():
        while True:
            try:
                async with database.reading() as tx:
                    is_taken = any(writer.name == name for writer in await leases.list_writers(tx))
            except (DatabaseUnavailable, OSError, TimeoutError):
                break
            if not is_taken:
                break
            if clock.monotonic() >= deadline:
                raise CannotStart(f"another writer named {name} is running: give each process a --name of its own")
            await clock.sleep(LOOK_SECONDS)
