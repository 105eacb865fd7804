"""What the handlers of federation_in work with: built once in main.py, reached through the application's state."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from matrixcore.identifiers import ServerName
from matrixcore.signing import SigningKey
from tessera.bus import CommandBus
from tessera.clock import Clock
from tessera.config import Settings
from tessera.fanout import Fanout
from tessera.federation.opening import Federation
from tessera.federation.own_policy_server import OwnPolicyServer
from tessera.federation.policy_servers import PolicyServers
from tessera.http.limits import RateLimits
from tessera.ids import IdSource
from tessera.room_changes import NamesOnDemand
from tessera.room_commands import RoomCommands
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards


@dataclass(frozen=True, slots=True)
class FederationInDeps:
    """Everything that outlives a request.

    Attributes:
        accounts: the account store.
        shards: the room databases.
        commands: the way to the room writers, for commands whose outcome is waited for.
        bus: the topics themselves, for the names of inbox rows.
        federation: the client, the keyring and whom we federate with.
        bridges: None where there are no application services.
        own_policy_server: None where this server is no room's.
    """

    settings: Settings
    server_name: ServerName
    clock: Clock
    ids: IdSource
    accounts: Database
    shards: RoomShards
    commands: RoomCommands
    bus: CommandBus
    fanout: Fanout
    limits: RateLimits
    federation: Federation
    signing_key: SigningKey
    bridges: NamesOnDemand | None = None
    own_policy_server: OwnPolicyServer | None = None

    @property
    def policy_servers(self) -> PolicyServers:
        """The way to the policy servers of this server's rooms."""
        return PolicyServers(self.federation.client, self.shards, self.own_policy_server)


async def federation_in_of(request: Request) -> FederationInDeps:
    """The parts, in a plain route."""
    deps: FederationInDeps = request.app.state.federation_in
    return deps


FederationInDep = Annotated[FederationInDeps, Depends(federation_in_of)]
"""The parts, in a FastAPI route."""
