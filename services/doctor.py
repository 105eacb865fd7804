"""What `tessera doctor` looks at."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from matrixcore.identifiers import ServerName
from tessera.clock import Clock
from tessera.config import Settings, load_signing_keys
from tessera.federation.client import FederationClient
from tessera.federation.connections import PeerConnections, PeerTls, proxy_of
from tessera.federation.discovery import Discovery
from tessera.federation.errors import PeerRefused, PeerUnreachable
from tessera.federation.examination import Examination, Finding, Level, failure, good
from tessera.federation.policy import FederationPolicy
from tessera.federation.well_known import WellKnown
from tessera.http.address_guard import AddressGuard
from tessera.ids import IdSource
from tessera.service import CannotStart


class Doctor:
    """All that the command looks at."""

    def __init__(self, settings: Settings, examination: Examination, client: FederationClient) -> None:
        self._settings = settings
        self._examination = examination
        self._client = client

    async def findings(self, peers: Sequence[ServerName]) -> AsyncIterator[tuple[str, Finding]]:
        """(server, finding): of our own server first."""
        own = ServerName(self._settings.server_name)
        if not self._settings.tessera.federation.enabled:
            yield own, Finding(Level.WARNING, "federation", "is off (tessera.federation.enabled)")
            return
        key = load_signing_keys(self._settings)[0]
        async for finding in self._examination.examine(own, {key.key_id: key.public_key}):
            yield own, finding
        for peer in peers:
            async for finding in self._examination.examine(peer):
                yield peer, finding
            yield peer, await self._is_believed(peer)

    async def _is_believed(self, peer: ServerName) -> Finding:
        """Ask for a profile that there is not: whatever the peer says of it, it has believed the signature."""
        path, query = "/_matrix/federation/v1/query/profile", {"user_id": f"@tessera-doctor:{peer}"}
        try:
            await self._client.get(peer, path, query)
        except PeerRefused as error:
            if error.status == 401:
                text = f"does not believe our signature: {error.message or error.errcode} (does it reach us?)"
                return failure("signature", text)
            if error.status >= 500 or error.status == 429:
                return Finding(Level.WARNING, "signature", f"did not say: {error}")
        except PeerUnreachable as error:
            return failure("signature", str(error))
        return good("signature", "believes ours, so it reaches us as well")


@asynccontextmanager
async def opened_doctor(
    settings: Settings, clock: Clock, *, connections: PeerConnections | None = None
) -> AsyncIterator[Doctor]:
    """A doctor with connections of its own, which reach every address.

    Args:
        connections: others, for tests.

    Raises:
        CannotStart: the certificates of federation_custom_ca_list cannot be used.
    """
    ids = IdSource()
    try:
        pool = connections or PeerConnections(
            PeerTls.of(settings), AddressGuard(only_public=False), proxy=proxy_of(settings)
        )
    except OSError as error:
        raise CannotStart(f"federation_custom_ca_list: no certificates: {error}") from error
    well_known = WellKnown(pool, clock, ids.fraction)
    discovery = Discovery(well_known, lambda: pool.dns, clock, ids.fraction)
    public = AddressGuard(settings.ip_range_blocklist, settings.ip_range_allowlist, only_public=False)
    examination = Examination(pool, well_known, discovery, public, clock)
    policy = FederationPolicy.of(settings)
    own = ServerName(settings.server_name)
    client = FederationClient(own, load_signing_keys(settings)[0], pool, discovery, policy)
    try:
        yield Doctor(settings, examination, client)
    finally:
        await pool.close()
