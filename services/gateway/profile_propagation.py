"""A changed name or avatar is owed to the user's rooms.

The debt is a row written with the profile, so that a crash between the two forgets nothing. Whoever sends the
member events implements `ProfilePropagator`; this module calls it and settles the debt.

Spec: C-S API §Profiles, "Events on Change of Profile Information".
"""

from typing import Protocol

import structlog

from matrixcore.identifiers import UserId
from tessera.clock import Clock
from tessera.storage import profiles
from tessera.storage.database import Database, DatabaseUnavailable

SWEEP_SECONDS = 60.0

log = structlog.get_logger(__name__)


class ProfilePropagator(Protocol):
    """Brings a user's displayname and avatar_url into the user's member events."""

    async def __call__(self, user_id: UserId) -> None:
        """Return when all joined rooms have the profile that is stored now. Repeatable.

        Raises:
            CommandUnanswered: some room could not be asked; it will be tried again.
        """


async def settle(accounts: Database, propagate: ProfilePropagator, user_id: UserId, revision: int) -> None:
    """Propagate one user's profile and strike out the debt, unless a newer one has come meanwhile."""
    await propagate(user_id)
    async with accounts.transaction() as tx:
        await profiles.settle_debt(tx, user_id, revision)


async def run(accounts: Database, propagate: ProfilePropagator, clock: Clock) -> None:
    """Settle what crashes and outages left behind, at the start and then once a minute, for ever."""
    while True:
        try:
            await settle_all(accounts, propagate)
        except DatabaseUnavailable:
            log.warning("profiles owed to rooms not read")
        await clock.sleep(SWEEP_SECONDS)


async def settle_all(accounts: Database, propagate: ProfilePropagator) -> int:
    """Try every open debt once; answers how many were settled. For start-up and a slow sweep."""
    after, settled = "", 0
    while True:
        async with accounts.reading() as tx:
            debts = await profiles.list_debts(tx, after)
        if not debts:
            return settled
        for debt in debts:
            try:
                await settle(accounts, propagate, debt.user_id, debt.revision)
                settled += 1
            except Exception:  # one user's rooms being away must not hold up the others
                log.warning("profile not propagated", user_id=debt.user_id, exc_info=True)
        after = debts[-1].user_id
