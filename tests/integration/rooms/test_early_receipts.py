"""Receipts that came before their events, while a store is away. Spec: C-S API §Receipts; DESIGN.md section 11."""

from types import SimpleNamespace
from typing import cast

import pytest
from seeded_rooms import ALICE, BOB, PARTITIONS, ROOM, SeededRoom

from matrixcore.identifiers import EventId, RoomId
from services.gateway.receipt_batches import WAIT_SECONDS, ReceiptBatches
from services.gateway.room_changes import RoomChanges
from tessera.clock import FakeClock
from tessera.commands import partition_of
from tessera.fanout import LocalFanout
from tessera.records import Receipt
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

ELSEWHERE = next(
    room_id
    for room_id in (RoomId(f"!elsewhere{number}:here.org") for number in range(100))
    if partition_of(room_id, PARTITIONS) != partition_of(ROOM, PARTITIONS)
)


class Places:
    """Two shards, one of which is away until it is back; the receipts that wait for events in them."""

    def __init__(self, accounts: Database, away: Database, clock: FakeClock) -> None:
        placement = dict.fromkeys(range(PARTITIONS), "away") | {partition_of(ROOM, PARTITIONS): "here"}
        self.accounts, self.clock = accounts, clock
        self.shards = RoomShards({"away": away, "here": accounts}, placement, PARTITIONS)
        fanout = LocalFanout()
        changes = SimpleNamespace(clock=clock, shards=self.shards, accounts=accounts, fanout=fanout, bridges=None)
        self.batches = ReceiptBatches(cast("RoomChanges", changes))

    def wait_for(self, room_id: RoomId, event_id: EventId) -> None:
        assert self.batches.add_early(room_id, Receipt(ALICE, "m.read.private", "", event_id, 1))

    async def read(self) -> set[str]:
        """The rooms that Alice has read something in."""
        return {row[0] for row in await self.accounts.fetch("SELECT room_id FROM accounts.read_positions")}

    def is_back(self) -> None:
        self.shards.databases["away"] = self.accounts


@pytest.fixture
async def places(accounts: Database, dsn: str) -> Places:
    away = await Database.connect(dsn)
    await away.close()
    return Places(accounts, away, FakeClock())


async def test_a_shard_that_is_away_holds_up_only_its_own(places: Places) -> None:
    here = await SeededRoom(places.accounts).create()
    elsewhere = await SeededRoom(places.accounts, ELSEWHERE).create()
    for room in (here, elsewhere):
        places.wait_for(room.room_id, (await room.message(BOB, "hello")).event_id)
    await places.batches.settle_early()
    assert await places.read() == {ROOM}
    # However long that takes: it was taken from its sender with a 200.
    await places.clock.advance(2 * WAIT_SECONDS)
    await places.batches.settle_early()
    places.is_back()
    await places.batches.settle_early()
    assert await places.read() == {ROOM, ELSEWHERE}


async def test_a_receipt_for_nothing_is_dropped_once_its_shard_has_been_asked(places: Places) -> None:
    room = await SeededRoom(places.accounts, ELSEWHERE).create()
    places.wait_for(ELSEWHERE, EventId("$never"))
    await places.clock.advance(WAIT_SECONDS + 1)
    await places.batches.settle_early()
    places.is_back()
    await places.batches.settle_early()
    # Had it been kept, it would be settled by now.
    await places.accounts.execute("UPDATE rooms.events SET event_id = '$never' WHERE event_id = $1", room.last)
    await places.batches.settle_early()
    assert await places.read() == set()


async def test_while_the_accounts_are_away_everybody_waits(places: Places, dsn: str) -> None:
    room = await SeededRoom(places.accounts).create()
    places.wait_for(ROOM, (await room.message(BOB, "hello")).event_id)
    changes = places.batches._changes
    changes.accounts = places.shards.databases["away"]  # type: ignore[misc]
    await places.batches.settle_early()
    changes.accounts = places.accounts  # type: ignore[misc]
    await places.batches.settle_early()
    assert await places.read() == {ROOM}
