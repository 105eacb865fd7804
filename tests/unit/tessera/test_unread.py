"""Unread counts judged event by event, for users with push rules of their own.

Spec: C-S API §Receiving notifications.
"""

from typing import Any

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.push_evaluation import compile_ruleset
from matrixcore.push_rules import from_stored_form, merged_ruleset
from tessera.storage.read_positions import ReadPosition
from tessera.storage.sync_unread import UnreadEvent
from tessera.unread import Count, evaluate_unread, own_evaluator, read_points

ROOM = RoomId("!room:here.org")
ALICE, BOB = UserId("@alice:here.org"), UserId("@bob:here.org")
EVALUATOR = compile_ruleset(BOB, merged_ruleset(BOB, from_stored_form({})))


def message(
    anchor: int, sender: UserId = ALICE, *, thread: str | None = None, redacted: bool = False, **content: Any
) -> UnreadEvent:
    pdu = {"type": "m.room.message", "sender": sender, "content": {"msgtype": "m.text", "body": "x", **content}}
    root = None if thread is None else EventId(thread)
    return UnreadEvent(ROOM, EventId(f"${anchor}"), anchor, sender, root, 3, False, redacted, orjson.dumps(pdu))


def receipt(anchor: int, thread: str = "", kind: str = "m.read", sub: int = 0) -> ReadPosition:
    return ReadPosition(BOB, ROOM, kind, thread, EventId("$r"), anchor, sub, 0)


def count(events: list[UnreadEvent], *receipts: ReadPosition) -> tuple[Count, dict[EventId, Count]]:
    unread = evaluate_unread(BOB, [ROOM], events, read_points(receipts), EVALUATOR, {})[ROOM]
    return unread.main, unread.threads


def test_receipts_cover_their_threads() -> None:
    events = [message(1), message(2, thread="$1"), message(3), message(4, thread="$1")]
    assert count(events) == (Count(2), {"$1": Count(2)})
    assert count(events, receipt(2)) == (Count(1), {"$1": Count(1)})
    assert count(events, receipt(3, "main")) == (Count(0), {"$1": Count(2)})
    assert count(events, receipt(2, "$1", "m.read.private")) == (Count(2), {"$1": Count(1)})
    assert count(events, receipt(3, kind="m.fully_read")) == (Count(2), {"$1": Count(2)})


def test_a_receipt_on_backfilled_history_reads_nothing_live() -> None:
    assert count([message(4)], receipt(4, sub=-3)) == (Count(1), {})


def test_the_own_event_reads_its_thread() -> None:
    events = [message(1), message(2, thread="$1"), message(3, BOB), message(4)]
    assert count(events) == (Count(1), {"$1": Count(1)})


def test_redacted_events_and_mentions() -> None:
    mention = {"m.mentions": {"user_ids": [BOB]}}
    assert count([message(1, redacted=True), message(2, **mention)]) == (Count(1, 1), {})


def test_default_rules_need_no_evaluator() -> None:
    assert own_evaluator(BOB, None) is None
    assert own_evaluator(BOB, b"{}") is None
    rule = {"rule_id": ROOM, "actions": [], "enabled": True}
    assert own_evaluator(BOB, orjson.dumps({"own": {"room": [rule]}, "changes": {}})) is not None
