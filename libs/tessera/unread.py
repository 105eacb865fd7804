"""Unread counts: how far a user has read each thread of a room, and how much lies above.

Users with the default push rules are counted from the writer's cumulative counters, whatever lies above.
For users with rules of their own the newest `sync_unread.EVALUATED_EVENTS` events above the read position are
judged one by one; what lies deeper is not counted (a badge of hundreds says no more than "many").

Spec: C-S API §Receiving notifications, §Threading, §Threaded read receipts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.push_evaluation import PushEvaluator, PushRoom, compile_ruleset
from matrixcore.push_rules import from_stored_form, merged_ruleset
from tessera.storage.database import Transaction
from tessera.storage.read_positions import ReadPosition
from tessera.storage.sync_unread import UnreadEvent, count, list_unread_events

MAIN = "main"
READ_TYPES = frozenset(("m.read", "m.read.private"))


@dataclass(slots=True)
class ReadPoints:
    """Anchors up to which a user has read a room, from receipts alone; 0 for nothing."""

    unthreaded: int = 0
    main: int = 0  # includes `unthreaded`
    threads: dict[EventId, int] = field(default_factory=dict)  # without `unthreaded`


@dataclass(frozen=True, slots=True)
class Count:
    """What a client shows beside a room or thread."""

    notify: int = 0
    highlight: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.notify + other.notify, self.highlight + other.highlight)


@dataclass(slots=True)
class RoomUnread:
    """The counts of a room, its threads apart; threads without any are absent."""

    main: Count = Count()
    threads: dict[EventId, Count] = field(default_factory=dict)

    @property
    def total(self) -> Count:
        """Main timeline and threads together, for clients that do not ask for threads."""
        return sum(self.threads.values(), self.main)


def read_points(positions: Iterable[ReadPosition]) -> dict[RoomId, ReadPoints]:
    """The read points by room, of one user's receipts."""
    rooms: dict[RoomId, ReadPoints] = {}
    for position in positions:
        if position.receipt_type not in READ_TYPES:
            continue
        points = rooms.setdefault(position.room_id, ReadPoints())
        # Of the events at one anchor only the live one counts, and it is above those backfilled below it.
        anchor = position.anchor if position.sub == 0 else position.anchor - 1
        if position.thread_id == "":
            points.unthreaded = max(points.unthreaded, anchor)
            points.main = max(points.main, anchor)
        elif position.thread_id == MAIN:
            points.main = max(points.main, anchor)
        else:
            root = EventId(position.thread_id)
            points.threads[root] = max(points.threads.get(root, 0), anchor)
    return rooms


def own_evaluator(user_id: UserId, stored_rules: bytes | None) -> PushEvaluator | None:
    """The evaluator of a user with rules that differ from the defaults; None for all others."""
    if stored_rules is None:
        return None
    rules = from_stored_form(orjson.loads(stored_rules))
    ruleset = merged_ruleset(user_id, rules)
    if ruleset == merged_ruleset(user_id, from_stored_form({})):
        return None
    return compile_ruleset(user_id, ruleset)


async def count_unread(
    tx: Transaction,
    user_id: UserId,
    rooms: Sequence[RoomId],
    points: Mapping[RoomId, ReadPoints],
    evaluator: PushEvaluator | None,
    display_names: Mapping[RoomId, str] | None = None,
    ignored: frozenset[UserId] = frozenset(),
) -> dict[RoomId, RoomUnread]:
    """The counts of rooms that the user is joined to: one statement for all of them.

    Who ignores somebody is counted like a user with own rules, since the counters know no senders.

    Args:
        tx: of the rooms' shard.
        evaluator: `own_evaluator`.
        display_names: the user's own in each room, for rules that look for it.
    """
    if not rooms:
        return {}
    nothing = ReadPoints()
    unthreaded = {room_id: points.get(room_id, nothing).unthreaded for room_id in rooms}
    if evaluator is None and ignored:
        evaluator = compile_ruleset(user_id, merged_ruleset(user_id, from_stored_form({})))
    if evaluator is not None:
        events = [event for event in await list_unread_events(tx, user_id, unthreaded) if event.sender not in ignored]
        return evaluate_unread(user_id, rooms, events, points, evaluator, display_names or {})
    counts = {room_id: RoomUnread() for room_id in rooms}
    read = [(room_id, unthreaded[room_id], points.get(room_id, nothing).main) for room_id in rooms]
    threads = [
        (room_id, root, anchor)
        for room_id in rooms
        if room_id in points
        for root, anchor in points[room_id].threads.items()
    ]
    for room_id, thread, notify, highlight in await count(tx, user_id, read, threads):
        if thread is None:
            counts[room_id].main = Count(notify, highlight)
        elif notify or highlight:
            counts[room_id].threads[thread] = Count(notify, highlight)
    return counts


def evaluate_unread(
    user_id: UserId,
    rooms: Sequence[RoomId],
    events: Sequence[UnreadEvent],
    points: Mapping[RoomId, ReadPoints],
    evaluator: PushEvaluator,
    display_names: Mapping[RoomId, str],
) -> dict[RoomId, RoomUnread]:
    """Judge events one by one with the user's own rules; `events` by room and in order."""
    counts = {room_id: RoomUnread() for room_id in rooms}
    nothing = ReadPoints()
    for event in events:
        room = counts[event.room_id]
        point = points.get(event.room_id, nothing)
        if event.sender == user_id:
            # The own event is where the user has read to, in its thread.
            if event.thread_root is None:
                room.main = Count()
            else:
                room.threads.pop(event.thread_root, None)
            continue
        if event.thread_root is None:
            read = point.main
        else:
            read = max(point.unthreaded, point.threads.get(event.thread_root, 0))
        if event.anchor <= read or event.redacted:
            continue
        outcome = evaluator.evaluate(
            {**orjson.loads(event.pdu), "event_id": event.event_id, "room_id": event.room_id},
            push_room(event.joined_count, room_mention=event.room_mention),
            display_names.get(event.room_id),
        )
        if not outcome.notify:
            continue
        one = Count(1, int(outcome.highlight))
        if event.thread_root is None:
            room.main += one
        else:
            room.threads[event.thread_root] = room.threads.get(event.thread_root, Count()) + one
    return counts


def push_room(joined_count: int, *, room_mention: bool) -> PushRoom:
    """The room as the rules' conditions see it.

    The writer has judged whether the sender may mention the room (the event then highlights for everybody), so
    the power levels need not be asked again.
    """
    return PushRoom(joined_count, float("inf") if room_mention else float("-inf"), {})
