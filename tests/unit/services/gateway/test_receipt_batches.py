"""When receipts go on their way. Spec: C-S API §Receipts; DESIGN.md section 5."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest

from matrixcore.identifiers import EventId, RoomId, UserId
from services.gateway.receipt_batches import (
    GATHER_SECONDS,
    GATHER_SECONDS_IN_LARGE_ROOMS,
    LARGE_ROOM,
    LOOK_AGAIN_SECONDS,
    ReceiptBatches,
)
from services.gateway.room_changes import RoomChanges
from tessera.clock import FakeClock
from tessera.commands import SetReceipts
from tessera.http.errors import MatrixError
from tessera.records import Receipt

SMALL, LARGE = RoomId("!small:here.org"), RoomId("!large:here.org")


class Writer:
    """Remembers (time in ms since the start, room, readers) of each batch; away while `is_away`."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.sent: list[tuple[int, RoomId, list[str]]] = []
        self.is_away = False

    async def submit(self, room_id: RoomId, _user_id: UserId, command: SetReceipts) -> None:
        if self.is_away:
            raise MatrixError("away", status=503)
        self.sent.append((round(self.clock.monotonic() * 1000), room_id, [one.user_id for one in command.receipts]))


@pytest.fixture
def writer() -> Writer:
    return Writer(FakeClock())


@pytest.fixture
async def batches(writer: Writer) -> AsyncIterator[ReceiptBatches]:
    made = ReceiptBatches(cast("RoomChanges", SimpleNamespace(clock=writer.clock, submit=writer.submit)))
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()


def read(batches: ReceiptBatches, room_id: RoomId, *names: str, joined: int = 2) -> None:
    for name in names:
        receipt = Receipt(UserId(f"@{name}:here.org"), "m.read", "", EventId("$event"), 1)
        assert batches.add(room_id, receipt, joined)


async def test_the_first_goes_at_once_and_the_others_together(writer: Writer, batches: ReceiptBatches) -> None:
    read(batches, SMALL, "a")
    await writer.clock.advance(0)
    read(batches, SMALL, "b", "c")
    await writer.clock.advance(1)
    interval = round(GATHER_SECONDS * 1000)
    assert writer.sent == [(0, SMALL, ["@a:here.org"]), (interval, SMALL, ["@b:here.org", "@c:here.org"])]
    read(batches, SMALL, "d")
    await writer.clock.advance(0)
    assert writer.sent[2:] == [(1000, SMALL, ["@d:here.org"])]


async def test_a_small_room_does_not_wait_for_a_large_one(writer: Writer, batches: ReceiptBatches) -> None:
    for name in ("a", "b"):
        read(batches, LARGE, name, joined=LARGE_ROOM + 1)
        await writer.clock.advance(0.05)
    read(batches, SMALL, "c")
    await writer.clock.advance(GATHER_SECONDS_IN_LARGE_ROOMS)
    assert [(moment, room) for moment, room, _ in writer.sent] == [(0, LARGE), (100, SMALL), (2000, LARGE)]


async def test_what_the_writer_did_not_take_is_sent_again(writer: Writer, batches: ReceiptBatches) -> None:
    writer.is_away = True
    read(batches, SMALL, "a")
    await writer.clock.advance(0)
    writer.is_away = False
    await writer.clock.advance(LOOK_AGAIN_SECONDS)
    assert writer.sent == [(1000, SMALL, ["@a:here.org"])]
