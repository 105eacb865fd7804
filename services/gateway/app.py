"""The gateway's application: all routes that it serves, and what they work with.

A module of the specification has a FastAPI `router` relative to the API's version, a `v1_router` of newer endpoints,
plain `routes`, an `admin_router` with whole paths, or several of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from fastapi import APIRouter
from starlette.routing import BaseRoute

from matrixcore.identifiers import ServerName, UserId
from matrixcore.signing import SigningKey
from services.gateway import (
    account_data,
    account_management,
    address_confirmation,
    admin_destinations,
    admin_register,
    admin_rooms,
    admin_users,
    appservice_ping,
    auth_fallback,
    capabilities,
    cross_signing,
    devices,
    keys,
    login,
    login_token,
    logout,
    moderation,
    oauth_account,
    oauth_clients,
    oauth_consent,
    oauth_server,
    oauth_sign_in,
    oauth_tokens,
    openid,
    presence,
    profile,
    pusher,
    pushrules,
    refresh,
    registration,
    registration_tokens,
    room_keys,
    room_routes,
    send_to_device,
    sso,
    tags,
    third_party_ids,
    third_party_networks,
    unstable_paths,
    users,
    versions,
    voip,
    web_client,
    wellknown,
    whoami,
)
from services.gateway import filter as filters
from services.gateway.address_validation import AddressValidation
from services.gateway.bridged_networks import BridgedNetworks
from services.gateway.claimed_names import ClaimedNames
from services.gateway.dependencies import GatewayDeps
from services.gateway.login_attempts import LoginAttempts
from services.gateway.member_event_propagation import MemberEventPropagator
from services.gateway.oauth_account import OAuthStage
from services.gateway.outgoing_calls import OutgoingCalls
from services.gateway.passwords import Passwords
from services.gateway.policies import Policies
from services.gateway.receipt_batches import ReceiptBatches
from services.gateway.room_changes import RoomChanges
from services.gateway.routing import V1_PREFIXES, mounted
from services.gateway.sessions import TokenLifetimes
from services.gateway.sso_provider import SSO, SingleSignOn
from services.gateway.sso_uia import SsoStage, own_flows
from services.gateway.telephone_delegate import TelephoneDelegate
from services.gateway.uia import OAUTH, OAUTH_BEFORE, UserInteractiveAuth
from services.gateway.uia_stages import build_stages
from tessera.bridged_names import BridgedNames
from tessera.clock import Clock
from tessera.config import Settings
from tessera.fanout import Fanout
from tessera.federation.own_policy_server import OwnPolicyServer
from tessera.http.app import MatrixApp, create_app
from tessera.http.limits import RateLimits
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.mailing import Mailer
from tessera.room_commands import RoomCommands
from tessera.storage.database import Database
from tessera.storage.gathered_lookups import GatheredLookups
from tessera.storage.profiles import Profile, list_profiles
from tessera.storage.shards import RoomShards
from tessera.telemetry import RequestMetrics
from tessera.token_authenticator import TokenAuthenticator

_MODULES = (
    *(
        whoami,
        versions,
        wellknown,
        web_client,
        login,
        login_token,
        sso,
        logout,
        refresh,
        registration,
        registration_tokens,
        auth_fallback,
        oauth_server,
        oauth_clients,
        oauth_consent,
        oauth_sign_in,
        oauth_tokens,
        oauth_account,
        moderation,
        openid,
        third_party_ids,
        address_confirmation,
        admin_register,
        admin_users,
        admin_destinations,
        admin_rooms,
        appservice_ping,
        account_management,
    ),
    *(
        devices,
        profile,
        account_data,
        tags,
        filters,
        pushrules,
        pusher,
        presence,
        users,
        capabilities,
        voip,
        third_party_networks,
    ),
    *(keys, cross_signing, room_keys, send_to_device, unstable_paths),
)


def gateway_routes() -> Iterator[BaseRoute]:
    """The plain routes of all modules."""
    yield from room_routes.HOT_ROUTES
    for module in _MODULES:
        yield from getattr(module, "routes", ())


@cache
def gateway_routers() -> tuple[APIRouter, ...]:
    """The FastAPI routers of all modules, with their whole paths; made once, as FastAPI takes its time for each."""
    return tuple(_routers())


def _routers() -> Iterator[APIRouter]:
    yield from room_routes.room_routers()
    for module in _MODULES:
        if (router := getattr(module, "router", None)) is not None:
            yield mounted(router)
        if (router := getattr(module, "v1_router", None)) is not None:
            yield mounted(router, V1_PREFIXES)
        for whole in ("admin_router", "whole_router"):
            if (router := getattr(module, whole, None)) is not None:
                yield router


def build_gateway(
    *,
    settings: Settings,
    clock: Clock,
    ids: IdSource,
    accounts: Database,
    shards: RoomShards,
    fanout: Fanout,
    commands: RoomCommands,
    limits: RateLimits,
    last_seen: LastSeenRecorder,
    authenticator: TokenAuthenticator,
    signing_key: SigningKey,
    passwords: Passwords,
    claims: ClaimedNames | None = None,
) -> GatewayDeps:
    """Put together what the handlers work with.

    The caller owns what runs: `last_seen.run`, `receipts.run`, `profile_propagation.run` and `departures.run`, and
    closes `passwords` and `calls` at the end.
    """
    server_name = ServerName(settings.server_name)
    attempts = LoginAttempts(limits)
    changes = RoomChanges(commands, shards, accounts, fanout, clock, ids)

    calls, policies = OutgoingCalls.of(settings, clock), Policies.of(settings)
    mailer = None if settings.email is None else Mailer(settings.email, server_name, clock, ids)
    addresses = AddressValidation(settings, accounts, clock, ids, limits, mailer)
    telephones = TelephoneDelegate(calls.trusted, settings.account_threepid_delegates.msisdn, limits)
    stages = build_stages(settings, accounts, clock, calls, policies, addresses, telephones)
    sign_on = SingleSignOn.of(settings, calls.trusted, clock)
    if sign_on is not None:
        stages[SSO] = SsoStage()
    if settings.tessera.oauth.enabled:
        stages[OAUTH] = stages[OAUTH_BEFORE] = OAuthStage(settings.client_baseurl)
    has_passwords = settings.password_config.enabled
    flows_of = None if sign_on is None else own_flows(accounts, sign_on, has_passwords=has_passwords)

    async def find_profiles(user_ids: Sequence[UserId]) -> Mapping[UserId, Profile]:
        async with accounts.reading() as tx:
            return await list_profiles(tx, user_ids)

    return GatewayDeps(
        settings=settings,
        server_name=server_name,
        clock=clock,
        ids=ids,
        accounts=accounts,
        shards=shards,
        fanout=fanout,
        commands=commands,
        limits=limits,
        authenticator=authenticator,
        last_seen=last_seen,
        lifetimes=TokenLifetimes.of(settings),
        passwords=passwords,
        attempts=attempts,
        uia=UserInteractiveAuth(accounts, clock, ids, passwords, attempts, server_name, stages, flows_of),
        policies=policies,
        calls=calls,
        addresses=addresses,
        telephones=telephones,
        propagate_profile=MemberEventPropagator(changes),
        signing_key=signing_key,
        sso=sign_on,
        own_policy_server=OwnPolicyServer.of(settings, limits),
        receipts=ReceiptBatches(changes),
        claims=claims or authenticator.appservices,
        profile_lookups=GatheredLookups(find_profiles),
        networks=BridgedNetworks(authenticator.appservices, calls.appservices, clock),
        bridges=BridgedNames(authenticator.appservices, calls.appservices, accounts, clock, server_name),
    )


def create_gateway_app(gateway: GatewayDeps, metrics: RequestMetrics | None = None) -> MatrixApp:
    """The ASGI application of the gateway."""
    return create_app(
        routes=gateway_routes(),
        routers=gateway_routers(),
        state={"gateway": gateway, "authenticator": gateway.authenticator},
        ids=gateway.ids,
        metrics=metrics,
    )
