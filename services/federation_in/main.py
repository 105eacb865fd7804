"""Puts federation_in together: the server-server API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from matrixcore.identifiers import ServerName
from services.federation_in.app import federation_routers, federation_routes, key_routers
from services.federation_in.dependencies import FederationInDeps
from services.federation_in.intake import open_intake
from tessera.federation.own_policy_server import OwnPolicyServer
from tessera.room_commands import RoomCommands
from tessera.service import Service, Surroundings
from tessera.storage.outcomes import ShardOutcomes

if TYPE_CHECKING:
    from tessera.appservice_client import AppServiceClient
    from tessera.bridged_names import BridgedNames

APPSERVICE_CONNECTIONS = 16


@asynccontextmanager
async def open_federation_in(around: Surroundings) -> AsyncIterator[Service]:
    """What other servers ask of this one; nothing but its keys where federation is off."""
    commands = RoomCommands(around.commands, around.fanout, ShardOutcomes(around.shards))
    client, bridges = _bridges(around)
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
        bridges=bridges,
        own_policy_server=OwnPolicyServer.of(around.settings, around.limits),
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
        if client is not None:
            await client.close()


def _bridges(around: Surroundings) -> "tuple[AppServiceClient | None, BridgedNames | None]":
    """What asks application services for names; the HTTP client takes memory, so only where there are any."""
    services = around.authenticator.appservices
    if not services.reachable:
        return None, None
    from tessera.appservice_client import AppServiceClient
    from tessera.bridged_names import BridgedNames

    client = AppServiceClient(around.clock, connections=APPSERVICE_CONNECTIONS)
    server_name = ServerName(around.settings.server_name)
    return client, BridgedNames(services, client, around.accounts, around.clock, server_name)
