"""Who is online is told to other servers once more now and then, though nothing has changed.

A server that has heard nothing of a user for half an hour takes the user for gone, so that one whose server has died is
not shown online for ever; and one that was away has missed what was said.

Spec: none; S-S API §Presence leaves it open, and this is what Synapse expects.
"""

from dataclasses import dataclass

import structlog

from matrixcore.identifiers import UserId
from services.federation_out.ephemeral import EphemeralEdus
from tessera.clock import Clock
from tessera.storage import presence
from tessera.storage.database import Database, DatabaseUnavailable

log = structlog.get_logger(__name__)

FIRST_SECONDS = 60.0  # after the start, which may come when a reminder was nearly due
# Twice within the half hour: whoever takes over a destination does not know when it was reminded last.
ROUND_SECONDS = 14 * 60.0
PAGE = 50  # a destination with room for so many has room for typing, too
PAUSE_SECONDS = 1.0
# A user whose clients sync was active a minute ago; who set a state and left is not vouched for.
ACTIVE_MS = 10 * 60_000


@dataclass(frozen=True, slots=True)
class PresenceReminders:
    """Goes through the local users who are about, page by page."""

    accounts: Database
    ephemeral: EphemeralEdus
    clock: Clock

    async def run(self) -> None:
        """Run for ever, a round after the other; a store that is away costs the rest of a round."""
        await self.clock.sleep(FIRST_SECONDS)
        while True:
            began = self.clock.monotonic()
            try:
                await self.go_round()
            except DatabaseUnavailable as error:
                log.info("presence is not repeated", error=str(error))
            rest = ROUND_SECONDS - (self.clock.monotonic() - began)
            await self.clock.sleep(max(PAUSE_SECONDS, rest))

    async def go_round(self) -> None:
        """Remind of everybody once. Raises DatabaseUnavailable."""
        after = UserId("")
        while True:
            active_after = self.clock.now_ms() - ACTIVE_MS
            async with self.accounts.reading() as tx:
                states = await presence.list_about(tx, after, active_after, PAGE)
            self.ephemeral.remind(states)
            if len(states) < PAGE:
                return
            after = states[-1].user_id
            await self.clock.sleep(PAUSE_SECONDS)
