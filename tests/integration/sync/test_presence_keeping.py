"""Presence that follows from syncing."""

import pytest

from matrixcore.identifiers import UserId
from services.sync.presence_keeping import OFFLINE_SECONDS, REFRESH_SECONDS, PresenceKeeper
from tessera.clock import FakeClock
from tessera.fanout import LocalFanout, Subscriber
from tessera.storage import presence
from tessera.storage.database import Database, Transaction
from tessera.storage.presence import Presence
from tessera.wakes import PresenceChange

ALICE = UserId("@alice:own.example")


async def _found(accounts: Database) -> Presence:
    async with accounts.reading() as tx:
        found = await presence.find_presence(tx, ALICE)
    assert found is not None
    return found


async def test_a_status_that_is_set_while_a_client_syncs_is_not_lost(
    accounts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, fanout = FakeClock(), LocalFanout()
    told: list[PresenceChange] = []
    await fanout.subscribe(Subscriber(on_presence=told.append))
    keeper = PresenceKeeper(accounts, fanout, clock)
    await keeper.note(ALICE, "online")
    assert [(one.presence, one.status_msg) for one in told] == [("online", None)]
    find = presence.find_presence

    async def find_and_set(tx: Transaction, user_id: UserId) -> Presence | None:
        found = await find(tx, user_id)
        async with accounts.reading() as other:
            await presence.set_presence(other, Presence(ALICE, "online", "at lunch", 1))
        return found

    monkeypatch.setattr(presence, "find_presence", find_and_set)
    clock.shift(REFRESH_SECONDS)
    await keeper.note(ALICE, "online")
    monkeypatch.undo()
    assert await _found(accounts) == Presence(ALICE, "online", "at lunch", clock.now_ms())
    active_ms = clock.now_ms()
    clock.shift(OFFLINE_SECONDS)
    await keeper.sweep()
    assert await _found(accounts) == Presence(ALICE, "offline", "at lunch", active_ms)
    assert [(one.presence, one.status_msg) for one in told[1:]] == [("offline", "at lunch")]
