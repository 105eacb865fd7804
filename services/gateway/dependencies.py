"""What the gateway's handlers work with: built once in main.py, reached through the application's state."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from matrixcore.identifiers import ServerName, UserId
from matrixcore.signing import SigningKey
from services.gateway.address_validation import AddressValidation
from services.gateway.bridged_networks import BridgedNetworks
from services.gateway.claimed_names import ClaimedNames
from services.gateway.directory_rules import DirectoryRules
from services.gateway.login_attempts import LoginAttempts
from services.gateway.member_lists import MemberLists
from services.gateway.outgoing_calls import OutgoingCalls
from services.gateway.passwords import Passwords
from services.gateway.policies import Policies
from services.gateway.profile_propagation import ProfilePropagator
from services.gateway.receipt_batches import ReceiptBatches
from services.gateway.remote_keys import RemoteKeys
from services.gateway.room_changes import RoomChanges
from services.gateway.room_creation import RoomMaker
from services.gateway.rooms_elsewhere import RoomsElsewhere
from services.gateway.sessions import TokenLifetimes
from services.gateway.spaces_elsewhere import SpacesElsewhere
from services.gateway.sso_provider import SingleSignOn
from services.gateway.telephone_delegate import TelephoneDelegate
from services.gateway.uia import UserInteractiveAuth
from tessera.bridged_names import BridgedNames
from tessera.clock import Clock
from tessera.config import Settings
from tessera.fanout import Fanout
from tessera.federation.backfilling import Backfiller
from tessera.federation.client import FederationClient
from tessera.federation.own_policy_server import OwnPolicyServer
from tessera.federation.policy_servers import PolicyServers
from tessera.http.limits import RateLimits
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.room_commands import RoomCommands
from tessera.storage.database import Database
from tessera.storage.gathered_lookups import GatheredLookups
from tessera.storage.profiles import Profile
from tessera.storage.shards import RoomShards
from tessera.token_authenticator import TokenAuthenticator


@dataclass(frozen=True, slots=True)
class GatewayDeps:
    """Everything that outlives a request.

    Attributes:
        accounts: the account store.
        shards: the room databases.
        commands: the way to the room writers.
        authenticator: forget a session there when it ends in this process.
        propagate_profile: called after a name or avatar changed, to bring it into the user's rooms.
        signing_key: of create events, which the gateway signs.
        policies: documents that whoever registers accepts.
        calls: of other services, to be closed at the end.
        claims: names that may not be registered, since application services own them.
        networks: what application services bridge.
        receipts: its `run` belongs to the process's TaskGroup.
        bridges: asks application services for names; None where a test has none.
        peers: asks other servers; None where a test has none.
        backfiller: fetches history from them; None as before.
        spaces: asks them about rooms that are not here; None as before.
        sso: the providers of identities; None where none is configured.
        own_policy_server: None where this server is no room's.
    """

    settings: Settings
    server_name: ServerName
    clock: Clock
    ids: IdSource
    accounts: Database
    shards: RoomShards
    fanout: Fanout
    commands: RoomCommands
    limits: RateLimits
    authenticator: TokenAuthenticator
    last_seen: LastSeenRecorder
    lifetimes: TokenLifetimes
    passwords: Passwords
    attempts: LoginAttempts
    uia: UserInteractiveAuth
    policies: Policies
    calls: OutgoingCalls
    addresses: AddressValidation
    telephones: TelephoneDelegate
    propagate_profile: ProfilePropagator
    signing_key: SigningKey
    receipts: ReceiptBatches
    claims: ClaimedNames
    profile_lookups: GatheredLookups[UserId, Profile]
    networks: BridgedNetworks
    bridges: BridgedNames | None = None
    elsewhere: RoomsElsewhere | None = None
    peers: FederationClient | None = None
    backfiller: Backfiller | None = None
    spaces: SpacesElsewhere | None = None
    sso: SingleSignOn | None = None
    own_policy_server: OwnPolicyServer | None = None
    member_lists: MemberLists = field(default_factory=MemberLists)

    @property
    def remote_keys(self) -> RemoteKeys | None:
        """The way to the keys of other servers' users."""
        if self.peers is None:
            return None
        return RemoteKeys(self.accounts, self.shards, self.peers, self.server_name)

    @property
    def rooms(self) -> RoomChanges:
        """The way to change rooms."""
        return RoomChanges(
            self.commands,
            self.shards,
            self.accounts,
            self.fanout,
            self.clock,
            self.ids,
            others=self.elsewhere,
            bridges=self.bridges,
            policy=None if self.peers is None else PolicyServers(self.peers, self.shards, self.own_policy_server),
        )

    @property
    def room_maker(self) -> RoomMaker:
        """The way to make rooms."""
        return RoomMaker(self.rooms, self.server_name, self.signing_key, DirectoryRules.of(self.settings))


def gateway_of(request: Request) -> GatewayDeps:
    """The dependencies of the application that serves the request, for plain routes."""
    gateway: GatewayDeps = request.app.state.gateway
    return gateway


# FastAPI runs a dependency that is no coroutine function in a thread, which costs more than most handlers.
async def _gateway_of(request: Request) -> GatewayDeps:
    return gateway_of(request)


async def _accounts_of(request: Request) -> Database:
    return gateway_of(request).accounts


async def _clock_of(request: Request) -> Clock:
    return gateway_of(request).clock


async def _fanout_of(request: Request) -> Fanout:
    return gateway_of(request).fanout


async def _uia_of(request: Request) -> UserInteractiveAuth:
    return gateway_of(request).uia


async def _settings_of(request: Request) -> Settings:
    return gateway_of(request).settings


GatewayDep = Annotated[GatewayDeps, Depends(_gateway_of)]
AccountsDep = Annotated[Database, Depends(_accounts_of)]
ClockDep = Annotated[Clock, Depends(_clock_of)]
FanoutDep = Annotated[Fanout, Depends(_fanout_of)]
UiaDep = Annotated[UserInteractiveAuth, Depends(_uia_of)]
SettingsDep = Annotated[Settings, Depends(_settings_of)]
