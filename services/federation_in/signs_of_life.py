"""A server that sends us something can be reached again, perhaps: what waits for it need not wait for its next try.

Spec: none; S-S API §Transactions leaves back-off to the sender.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import structlog

from matrixcore.identifiers import ServerName
from tessera.clock import Clock
from tessera.storage import federation_destinations
from tessera.storage.database import Database, DatabaseUnavailable

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 10.0
MAX_SERVERS = 10_000


@dataclass(slots=True)
class SignsOfLife:
    """Passes signs of life on to federation_out, seldom."""

    accounts: Database
    clock: Clock
    _noted: OrderedDict[ServerName, float] = field(default_factory=OrderedDict)

    async def note(self, origin: ServerName) -> None:
        """The server has proven to be there."""
        now = self.clock.monotonic()
        if now - self._noted.get(origin, float("-inf")) < AGAIN_SECONDS:
            return
        self._noted[origin] = now
        self._noted.move_to_end(origin)
        if len(self._noted) > MAX_SERVERS:
            self._noted.popitem(last=False)
        try:
            async with self.accounts.reading() as tx:  # one statement
                if await federation_destinations.note_life(tx, origin):
                    log.info("sending to a server again", destination=origin)
        except DatabaseUnavailable as error:
            log.info("sign of life not noted", origin=origin, error=str(error))
