"""Puts the room writer together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from matrixcore.identifiers import ServerName
from services.rooms.replaying import replay_requested
from services.rooms.service import RoomWriter
from tessera.service import Service, Surroundings


@asynccontextmanager
async def open_rooms(around: Surroundings) -> AsyncIterator[Service]:
    """The writer of its share of the partitions; at the end whatever has been taken gets its outcome."""
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
