"""Puts the projector together: a consumer of room.log for each step."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from matrixcore.identifiers import ServerName
from services.projector import directory, memberships
from services.projector.consumer import RecordConsumer, Step
from tessera.service import Service, Surroundings


@asynccontextmanager
async def open_projector(around: Surroundings) -> AsyncIterator[Service]:
    """All steps, each with cursors of its own."""
    steps: dict[str, Step] = {
        memberships.CONSUMER: memberships.MembershipStep(around.fanout, ServerName(around.settings.server_name)),
        directory.CONSUMER: directory.DirectoryStep(around.shards),
    }
    consumers = [
        RecordConsumer(name, step, around.records, around.accounts, around.shards, around.clock)
        for name, step in steps.items()
    ]
    yield Service(background=tuple(consumer.run for consumer in consumers))
