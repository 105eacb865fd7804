"""Public receipts: one record for each command, of those that are newer than what the room has.

Spec: C-S API §Receipts.
"""

from services.rooms.local_events import accept
from services.rooms.room_work import RoomWork
from tessera.commands import Command, Outcome, SetReceipts
from tessera.records import OrderKey, Receipt, ReceiptsBody, RecordKind


def set_receipts(work: RoomWork, command: Command, body: SetReceipts) -> Outcome:
    """Take in those receipts that move on; the outcome's event_ids are theirs."""
    newer: dict[tuple[str, str, str], Receipt] = {}
    orders: dict[tuple[str, str, str], OrderKey] = {}
    key: tuple[str, str, str]
    for receipt in body.receipts:
        key = (receipt.receipt_type, receipt.user_id, receipt.thread_id)
        event = work.find_event(receipt.event_id)
        if event is None or event.order is None:
            continue
        before = orders.get(key) or _order_before(work, key)
        if before is None or event.order > before:
            newer[key] = receipt
            orders[key] = event.order
    if newer:
        position = work.record(RecordKind.RECEIPTS, ReceiptsBody(tuple(newer.values())))
        for key, receipt in newer.items():
            work.receipts[key] = (receipt.event_id, receipt.ts, position)
    return accept(work, command, tuple(receipt.event_id for receipt in newer.values()))


def _order_before(work: RoomWork, key: tuple[str, str, str]) -> OrderKey | None:
    """The place of the event at which the room has the user's receipt."""
    written = work.receipts.get(key)
    if written is not None:
        event = work.find_event(written[0])
        return None if event is None else event.order
    stored = work.loaded.receipts.get((work.room_id, *key))
    return None if stored is None else stored.order
