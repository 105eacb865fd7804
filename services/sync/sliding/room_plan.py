"""Which of the rooms that a request matches have anything to tell, and from where on.

Spec: MSC4186 §Room results, §Changing room configs.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from matrixcore.identifiers import RoomId
from services.sync.room_plan import JOIN
from services.sync.room_tails import RoomTail
from services.sync.sliding.request import Extensions
from services.sync.sliding.required_state import RequiredState
from services.sync.sliding.sent_rooms import Sent, SentRoom, Told
from services.sync.sliding.windows import WantedRoom, Windows
from tessera.records import RecordKind
from tessera.storage.shards import RoomShards
from tessera.sync_token import Point

SILENT_KINDS = frozenset((RecordKind.RECEIPTS, RecordKind.DEVICE_LISTS))


@dataclass(slots=True)
class RoomTask:
    """A room of which its events and state are told.

    Attributes:
        floor: the position up to which the client knows it; -1 for nothing.
        up_to: the position up to which it is told.
        live_from: events above this position have just happened.
        old_wish: what was told of its state up to `floor`.
        is_expanded: more of its timeline is wanted than the client was sent.
        is_left: the user is not in it any longer; its events end at the own leave.
        may_be_quiet: its tail does not reach back to what the client has: only PostgreSQL knows if there is anything.
    """

    wanted: WantedRoom
    partition: int
    sent: SentRoom | None
    floor: int
    up_to: int
    live_from: int
    is_expanded: bool = False
    is_left: bool = False
    may_be_quiet: bool = False

    @property
    def room_id(self) -> RoomId:
        """The room."""
        return self.wanted.room.room_id

    @property
    def old_wish(self) -> RequiredState:
        """What was told of its state up to `floor`."""
        return RequiredState() if self.sent is None or self.floor < 0 else self.sent.wish

    @property
    def only_own_leave(self) -> bool:
        """Whether the user may see nothing of the room but the own leave."""
        return self.is_left and not self.wanted.room.was_joined


@dataclass(slots=True)
class RoomsPlan:
    """What an answer tells of rooms.

    Attributes:
        tasks: rooms whose events and state are read.
        previews: rooms of which the user has stripped state alone.
    """

    tasks: list[RoomTask] = field(default_factory=list)
    previews: list[WantedRoom] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether no room has news."""
        return not self.tasks and not self.previews


def pass_over_quiet(
    windows: Windows, told: Told, extensions: Extensions, touched: Collection[RoomId], recounted: Collection[RoomId]
) -> None:
    """Leave rooms out of `active` in which nothing has happened and of which nothing else is wanted: nearly all.

    Args:
        touched: rooms of which the user's log had something to say; `recounted` those with other unread counts.
    """
    if told.token is None:
        return
    base, data, receipts = told.token.positions, extensions.account_data, extensions.receipts
    active: dict[RoomId, WantedRoom] = {}
    for room_id, wanted in windows.rooms.items():
        room, sent = wanted.room, told.rooms.get(room_id)
        if (tail := room.tail) is not None and sent is not None:
            before = base.get(tail.partition)
            if (
                before is not None
                and tail.last <= before.position
                and sent.known is None
                and (sent.membership, sent.stay) == (JOIN, room.position)
                and wanted.timeline_limit <= sent.timeline_limit
                and (wanted.required_state is sent.wish or wanted.required_state == sent.wish)
                and sent.is_dm is wanted.is_dm
                and sent.has_data is (data is not None and wanted.is_in(data))
                and sent.has_receipts is (receipts is not None and wanted.is_in(receipts))
                and room_id not in touched
                and room_id not in recounted
            ):
                continue
        active[room_id] = wanted
    windows.active = active


def plan_rooms(
    windows: Windows,
    told: Told,
    positions: Mapping[int, Point],
    recounted: Collection[RoomId],
    cuts: Mapping[RoomId, int],
    shards: RoomShards,
) -> RoomsPlan:
    """What is to be told after `told`.

    Args:
        positions: up to where rooms are told, by partition.
        recounted: rooms whose unread counts changed without a record.
        cuts: where stays end of which the user's log does not know.
    """
    base = {} if told.token is None else told.token.positions
    plan = RoomsPlan()
    for room_id, wanted in windows.active.items():
        room, sent = wanted.room, told.rooms.get(room_id)
        if room.is_joined:
            assert room.tail is not None
            task = _joined_task(wanted, room.tail, sent, base, positions)
            task.up_to = min(task.up_to, cuts.get(room_id, task.up_to))
            has_news = room_id in recounted or _has_news(task, room.tail)
            task.may_be_quiet = not has_news and task.floor < min(room.tail.floor, task.up_to)
            if has_news or task.may_be_quiet:
                plan.tasks.append(task)
        elif sent is None or (sent.membership, sent.stay) != (room.membership, room.position):
            if room.membership in ("leave", "ban"):
                plan.tasks.append(_left_task(wanted, shards.partition_of(room_id), sent, base))
            else:
                plan.previews.append(wanted)
    return plan


def _joined_task(
    wanted: WantedRoom,
    tail: RoomTail,
    sent: SentRoom | None,
    base: Mapping[int, Point],
    positions: Mapping[int, Point],
) -> RoomTask:
    up_to, before = positions[tail.partition], base.get(tail.partition)
    live_from = up_to.position if before is None else before.position
    if sent is None or sent.membership != JOIN:
        return RoomTask(wanted, tail.partition, None, -1, up_to.position, live_from)
    known = sent.known or before
    floor = -1 if known is None or known.incarnation != up_to.incarnation else known.position
    is_expanded = wanted.timeline_limit > sent.timeline_limit
    return RoomTask(wanted, tail.partition, sent, floor, up_to.position, live_from, is_expanded=is_expanded)


def _left_task(wanted: WantedRoom, partition: int, sent: SentRoom | None, base: Mapping[int, Point]) -> RoomTask:
    room = wanted.room
    known = None if sent is None or sent.membership != JOIN else sent.known or base.get(partition)
    floor = -1 if known is None else known.position
    task = RoomTask(wanted, partition, sent if floor >= 0 else None, floor, room.position, floor, is_left=True)
    if task.only_own_leave:
        task.floor = room.position - 1
    return task


def _has_news(task: RoomTask, tail: RoomTail) -> bool:
    sent, room = task.sent, task.wanted.room
    if sent is None or task.floor < 0 or task.is_expanded:
        return True
    if sent.stay != room.position or sent.is_dm != task.wanted.is_dm:
        return True
    wish = task.wanted.required_state
    if wish is not sent.wish and wish.beyond(sent.wish).atoms:
        return True
    return any(record.kind not in SILENT_KINDS for record in tail.after(task.floor) if record.position <= task.up_to)


def sent_after(
    windows: Windows,
    told: Told,
    updates: Mapping[RoomId, SentRoom],
    joined: Mapping[RoomId, RoomTail],
    touched: Collection[RoomId],
    shards: RoomShards,
) -> Sent:
    """What the client has been told once it has the answer.

    Rooms that the request does not match and that have gone on stay where they were.

    Args:
        updates: the rooms that it matches.
        joined: the rooms that the user is in.
        touched: rooms of which the user's log had something to say.
    """
    base = {} if told.token is None else told.token.positions
    changes: dict[RoomId, SentRoom] = {}
    for room_id, sent in updates.items():
        if told.rooms.get(room_id) != sent:
            changes[room_id] = sent
    for room_id, sent in told.rooms.items():
        if room_id in windows.rooms or sent.known is not None or sent.membership != JOIN:
            continue
        tail, before = joined.get(room_id), base.get(shards.partition_of(room_id))
        if tail is None or before is None or tail.last > before.position or room_id in touched:
            changes[room_id] = sent._replace(known=before, has_data=False)
    return told.rooms.update(changes) if changes else told.rooms
