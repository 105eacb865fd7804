"""Everything about peers that the services of a process share, put together."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from matrixcore.identifiers import ServerName
from matrixcore.server_keys import ServerKey
from matrixcore.signing import SigningKey, decode_base64
from tessera.clock import Clock
from tessera.config import Settings
from tessera.federation.authentication import PeerAuthenticator
from tessera.federation.client import FederationClient
from tessera.federation.connections import PeerConnections
from tessera.federation.discovery import Discovery
from tessera.federation.key_fetching import KeyFetcher
from tessera.federation.keyring import Keyring
from tessera.federation.own_keys import OwnKeys
from tessera.federation.peer_limits import PeerLimits
from tessera.federation.policy import FederationPolicy
from tessera.federation.signature_checks import SignatureChecker
from tessera.federation.well_known import WellKnown
from tessera.ids import IdSource
from tessera.storage.database import Database


@dataclass(frozen=True, slots=True)
class Federation:
    """What a process has of federation. Without peers all of it is there and refuses.

    Attributes:
        policy: with whom this server federates.
        client: asks other servers.
        keyring: verifies what they signed.
        peers: who asks us; becomes `state.peers`.
    """

    policy: FederationPolicy
    client: FederationClient
    keyring: Keyring
    own_keys: OwnKeys
    key_fetcher: KeyFetcher
    peers: PeerAuthenticator
    discovery: Discovery
    well_known: WellKnown
    connections: PeerConnections


@asynccontextmanager
async def open_federation(
    settings: Settings,
    signing_keys: Sequence[SigningKey],
    accounts: Database,
    clock: Clock,
    ids: IdSource,
    *,
    connections: PeerConnections | None = None,
) -> AsyncIterator[Federation]:
    """Federation as the configuration has it; nothing is connected before it is needed.

    Args:
        connections: others than the configuration's, for tests.

    Raises:
        OSError: a file of federation_custom_ca_list holds no certificates.
    """
    server_name = ServerName(settings.server_name)
    connections = PeerConnections.of(settings) if connections is None else connections
    policy = FederationPolicy.of(settings)
    own_keys = OwnKeys(
        server_name,
        signing_keys,
        accounts,
        clock,
        configured_old={
            key_id: ServerKey(decode_base64(old.key), old.expired_ts, is_old=True)
            for key_id, old in settings.old_signing_keys.items()
        },
        validity_ms=settings.key_refresh_interval,
    )
    pool = connections
    well_known = WellKnown(pool, clock, ids.fraction)
    discovery = Discovery(well_known, lambda: pool.dns, clock, ids.fraction)
    client = FederationClient(server_name, signing_keys[0], pool, discovery, policy)
    fetcher = KeyFetcher(client, accounts, clock, settings.trusted_key_servers)
    checker = SignatureChecker()
    keyring = Keyring(accounts, fetcher, own_keys, checker)
    limits = PeerLimits(settings.rc_federation, clock)
    peers = PeerAuthenticator(server_name, keyring, policy, limits, clock)
    try:
        yield Federation(policy, client, keyring, own_keys, fetcher, peers, discovery, well_known, pool)
    finally:
        checker.close()
        await pool.close()
