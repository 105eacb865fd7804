"""Puts federation_in together: the server-server API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from matrixcore.identifiers import ServerName
from services.federation_in.app import federation_routers, federation_routes, key_routers
from services.federation_in.dependencies import FederationInDeps
from services.federation_in.intake import open_intake
from tessera.room_commands import RoomCommands
from tessera.service import Service, Surroundings
from tessera.storage.outcomes import ShardOutcomes


@asynccontextmanager
async def open_federation_in(around: Surroundings) -> AsyncIterator[Service]:
    """What other servers ask of this one; nothing but its keys where federation is off."""
    commands = RoomCommands(around.commands, around.fanout, ShardOutcomes(around.shards))
    deps = FederationInDeps(
        settings=around.settings,
        server_name=ServerName(around.settings.server_name),
        clock=around.clock,
        ids=around.ids,
        accounts=around.accounts,
        shards=around.shards,
        commands=commands,
        bus=around.commands,
        fanout=around.fanout,
        limits=around.limits,
        federation=around.require_federation(),
        signing_key=around.signing_key,
    )
    await commands.start()
    try:
        async with open_intake(deps) as intake:
            yield Service(
                routes={"federation": list(federation_routes())},
                routers={"federation": list(federation_routers()), "keys": list(key_routers())},
                state={"federation_in": deps, "transactions": intake.transactions},
                background=(commands.poll_overdue, *intake.background),
            )
    finally:
        await commands.stop()
