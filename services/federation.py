"""Federation for the services of a process, with what an operator can mend in one line."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from matrixcore.signing import SigningKey
from tessera.clock import Clock
from tessera.config import Settings
from tessera.federation.connections import PeerConnections
from tessera.federation.opening import Federation, open_federation
from tessera.ids import IdSource
from tessera.service import CannotStart
from tessera.storage.database import Database


@asynccontextmanager
async def opened_federation(
    settings: Settings, signing_keys: Sequence[SigningKey], accounts: Database, clock: Clock, ids: IdSource
) -> AsyncIterator[Federation]:
    """Federation as the configuration has it.

    Raises:
        CannotStart: the certificates of federation_custom_ca_list cannot be used.
    """
    try:
        connections = PeerConnections.of(settings)
    except OSError as error:
        raise CannotStart(f"federation_custom_ca_list: no certificates: {error}") from error
    async with open_federation(settings, signing_keys, accounts, clock, ids, connections=connections) as federation:
        yield federation
