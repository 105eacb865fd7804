"""Puts together what takes in the transactions of other servers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from matrixcore.identifiers import RoomId
from services.federation_in import extremity_merging
from services.federation_in.dependencies import FederationInDeps
from services.federation_in.edu_intake import EduIntake
from services.federation_in.fetching import AncestorFetcher
from services.federation_in.naming import InboxNaming
from services.federation_in.policy_checks import PolicyChecks
from services.federation_in.receiving import PduReceiver
from services.federation_in.rescissions import InviteEnds
from services.federation_in.signs_of_life import SignsOfLife
from services.federation_in.transactions import TransactionReceiver
from tessera.federation.event_fetching import EventFetcher
from tessera.service import Background


@dataclass(frozen=True, slots=True)
class Intake:
    """What receives transactions, and what runs beside it."""

    transactions: TransactionReceiver
    naming: InboxNaming
    fetcher: AncestorFetcher
    checks: PolicyChecks
    background: tuple[Background, ...]


@asynccontextmanager
async def open_intake(deps: FederationInDeps) -> AsyncIterator[Intake]:
    """Everything from a transaction to the names of its PDUs."""
    fetcher = AncestorFetcher(
        deps.server_name,
        deps.shards,
        EventFetcher(deps.federation.client, deps.federation.keyring),
        deps.clock,
        deps.ids.token(12),
    )
    checks = PolicyChecks(deps.shards, deps.policy_servers, deps.clock)

    def on_parked(room_id: RoomId) -> None:
        fetcher.wake(room_id)
        checks.wake(room_id)

    naming = InboxNaming(deps.bus, deps.fanout, deps.shards, deps.clock, deps.ids, on_parked=on_parked)
    receiver = PduReceiver(deps.server_name, deps.shards, deps.federation.keyring, deps.clock)
    edus = EduIntake.of(deps)
    life = SignsOfLife(deps.accounts, deps.clock)
    transactions = TransactionReceiver(deps.accounts, receiver, naming, deps.clock, edus, InviteEnds(deps), life)
    await naming.start()
    try:
        merging: Background = partial(extremity_merging.run, deps)
        asking: tuple[Background, ...] = (checks.sweep, lambda: checks.run(naming))
        background = (
            naming.sweep,
            fetcher.sweep,
            fetcher.renew,
            lambda: fetcher.run(naming),
            *asking,
            merging,
            *edus.background,
        )
        yield Intake(transactions, naming, fetcher, checks, background)
    finally:
        await naming.stop()
