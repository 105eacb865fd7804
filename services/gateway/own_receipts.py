"""Setting receipts: the checks, the user's own read position at once, the public receipt with the room's next batch.

Spec: C-S API §Receipts, §Fully read markers.
"""

from collections.abc import Mapping
from typing import Any

from matrixcore.identifiers import EventId, InvalidIdentifier, RoomId, UserId, parse_event_id
from services.gateway.receipt_batches import PRIVATE, PUBLIC, ReceiptBatches, read_position, set_read_positions
from services.gateway.room_changes import RoomChanges
from tessera.http.errors import Forbidden, InvalidParam, LimitExceeded
from tessera.records import Receipt
from tessera.storage.room_reads.receipts import ReceiptTarget, find_target

FULLY_READ = "m.fully_read"
RECEIPT_TYPES = frozenset((PUBLIC, PRIVATE, FULLY_READ))
MAIN_THREAD = "main"
RETRY_AFTER_MS = 2_000


async def set_receipts(
    changes: RoomChanges,
    batches: ReceiptBatches,
    user_id: UserId,
    room_id: RoomId,
    events: Mapping[str, EventId],
    thread_id: str = "",
) -> None:
    """Set receipts of several types; what would move backwards is ignored.

    Args:
        events: receipt type -> event.

    Raises:
        Forbidden: the user is not joined.
        InvalidParam: an event is not in the thread.
        LimitExceeded: too many receipts are on their way.
    """
    now_ms = changes.clock.now_ms()
    positions = []
    for receipt_type, event_id in events.items():  # at most three types
        receipt = Receipt(user_id, receipt_type, thread_id, event_id, now_ms)
        target = await _require_target(changes, room_id, user_id, event_id)
        if target.order is None:
            if not batches.add_early(room_id, receipt):
                raise LimitExceeded(RETRY_AFTER_MS)
            continue
        _check_thread(target, event_id, thread_id)
        positions.append(read_position(room_id, receipt, target.order))
        if receipt_type == PUBLIC and not batches.add(room_id, receipt, target.joined_count):
            raise LimitExceeded(RETRY_AFTER_MS)
    await set_read_positions(changes, positions)


def parse_thread_id(body: Mapping[str, Any], receipt_type: str) -> str:
    """The thread of a receipt: "" if it has none, "main", or the ID of the thread's root.

    Raises:
        InvalidParam
    """
    if "thread_id" not in body:
        return ""
    thread_id = body["thread_id"]
    if not isinstance(thread_id, str) or not thread_id:
        raise InvalidParam("thread_id must be a string that is not empty")
    if receipt_type == FULLY_READ:
        raise InvalidParam("thread_id is not compatible with m.fully_read")
    if thread_id != MAIN_THREAD:
        try:
            parse_event_id(thread_id)
        except InvalidIdentifier as error:
            raise InvalidParam(f"thread_id: {error}") from error
    return thread_id


async def _require_target(changes: RoomChanges, room_id: RoomId, user_id: UserId, event_id: EventId) -> ReceiptTarget:
    async with changes.shards.of_room(room_id).reading() as tx:
        target = await find_target(tx, room_id, user_id, event_id)
    if target is None or target.membership != "join":
        raise Forbidden("You are not joined to this room")
    return target


def _check_thread(target: ReceiptTarget, event_id: EventId, thread_id: str) -> None:
    """A thread's root belongs to the main timeline, and to its thread too."""
    if not thread_id:
        return
    if thread_id == MAIN_THREAD:
        if target.thread_root is not None and target.thread_root != event_id:
            raise InvalidParam("the event is in a thread")
    elif thread_id not in (event_id, target.thread_root):
        raise InvalidParam("the event is not in this thread")
