"""Which rooms an answer holds, and how: decided by the user log alone (DESIGN section 5).

A room or invite that was entered after the token's u is sent as new, whatever V says. Where the user log has the
user joined, records count up to the first own leave after the join that the log knows: memberships may be
projected late.

Spec: C-S API §Syncing (join, invite, knock, leave).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.room_reads.members import MembershipStep
from tessera.storage.user_log import UserLogKind, UserLogRow
from tessera.storage.user_rooms import UserRoom

JOIN = "join"
INVITE = "invite"
KNOCK = "knock"


@dataclass(frozen=True, slots=True)
class PlannedRoom:
    """A room with events in the answer.

    Attributes:
        is_new: sent as if the client had never seen it (whatever the token says of its partition).
        was_known: the client had the room before, so a new beginning of its timeline is limited.
        moved_from: the position of the own membership that the client knows, where the log has a later one: a leave
            in between that the log never got makes the room new.
        is_left: it goes to `leave`; its events end at the own leave.
        only_own_leave: the user was not joined before: nothing but the own member event is told.
    """

    room: UserRoom
    is_new: bool
    was_known: bool = False
    moved_from: int | None = None
    is_left: bool = False
    only_own_leave: bool = False


@dataclass(slots=True)
class RoomPlan:
    """All rooms of an answer.

    Attributes:
        stays: joined before and after; they appear if something happened in them.
    """

    stays: list[PlannedRoom] = field(default_factory=list)
    entered: list[PlannedRoom] = field(default_factory=list)
    left: list[PlannedRoom] = field(default_factory=list)
    invites: list[UserRoom] = field(default_factory=list)
    knocks: list[UserRoom] = field(default_factory=list)

    @property
    def with_events(self) -> list[PlannedRoom]:
        """Those whose events are read."""
        return [*self.stays, *self.entered, *self.left]


def plan_initial(rooms: Sequence[UserRoom], *, include_leave: bool, ignored: frozenset[UserId]) -> RoomPlan:
    """The rooms of a sync without a token."""
    plan = RoomPlan()
    for room in rooms:
        if room.membership == JOIN:
            plan.entered.append(PlannedRoom(room, is_new=True))
        elif room.membership == INVITE:
            if room.sender not in ignored:
                plan.invites.append(room)
        elif room.membership == KNOCK:
            plan.knocks.append(room)
        elif include_leave and not room.forgotten:
            plan.left.append(PlannedRoom(room, is_new=True, is_left=True))
    return plan


def plan_resync(rooms: Sequence[UserRoom], *, ignored: frozenset[UserId]) -> RoomPlan:
    """The rooms of a sync after a token that says more than the user's log: the log went back in time.

    What the client knows is not known. So it is told every room, those it was in as limited, and where it is not.
    """
    plan = RoomPlan()
    for room in rooms:
        if room.membership == JOIN:
            plan.entered.append(PlannedRoom(room, is_new=True, was_known=True))
        elif room.membership == INVITE:
            if room.sender not in ignored:
                plan.invites.append(room)
        elif room.membership == KNOCK:
            plan.knocks.append(room)
        elif not room.forgotten:
            plan.left.append(PlannedRoom(room, is_new=False, is_left=True, only_own_leave=True))
    return plan


def plan_incremental(rooms: Sequence[UserRoom], entries: Sequence[UserLogRow], ignored: frozenset[UserId]) -> RoomPlan:
    """The rooms of a sync after a token.

    Args:
        rooms: as of the end of `entries`.
        entries: of the user log, those after the token's u, oldest first.
    """
    moves = membership_moves(entries)
    first_positions = positions_before(entries)
    plan = RoomPlan()
    for room in rooms:
        path = moves.get(room.room_id)
        if path is None:
            if room.membership == JOIN:
                plan.stays.append(PlannedRoom(room, is_new=False))
            continue
        before = path[0]
        if room.membership == JOIN:
            if all(membership == JOIN for membership in path):
                plan.stays.append(PlannedRoom(room, is_new=False, moved_from=first_positions[room.room_id]))
            else:
                plan.entered.append(PlannedRoom(room, is_new=True, was_known=JOIN in path[:-1]))
        elif room.membership == INVITE:
            if room.sender not in ignored:
                plan.invites.append(room)
        elif room.membership == KNOCK:
            plan.knocks.append(room)
        elif before == JOIN:
            start = first_positions[room.room_id]
            plan.left.append(PlannedRoom(room, is_new=False, was_known=True, moved_from=start, is_left=True))
        elif any(membership == JOIN for membership in path):
            plan.left.append(PlannedRoom(room, is_new=True, is_left=True))
        elif before is not None or room.membership == "ban":
            plan.left.append(PlannedRoom(room, is_new=False, is_left=True, only_own_leave=True))
    return plan


def membership_moves(entries: Sequence[UserLogRow]) -> dict[RoomId, list[str | None]]:
    """Room -> the user's memberships one after the other, beginning with the one before the first entry."""
    moves: dict[RoomId, list[str | None]] = {}
    for entry in entries:
        if entry.kind != UserLogKind.MEMBERSHIP or entry.body is None:
            continue
        body = orjson.loads(entry.body)
        path = moves.get(RoomId(entry.room_id))
        if path is None:
            path = moves[RoomId(entry.room_id)] = [body["prev_membership"]]
        path.append(body["membership"])
    return moves


def positions_before(entries: Sequence[UserLogRow]) -> dict[RoomId, int | None]:
    """Room -> the position of the user's membership before the first entry."""
    positions: dict[RoomId, int | None] = {}
    for entry in entries:
        if entry.kind == UserLogKind.MEMBERSHIP and entry.body is not None and entry.room_id not in positions:
            positions[RoomId(entry.room_id)] = orjson.loads(entry.body).get("prev_position")
    return positions


def is_interrupted(one: PlannedRoom, steps: Sequence[MembershipStep]) -> bool:
    """Whether the user was away between the membership that the client knows and the present one."""
    start = one.moved_from
    return start is not None and any(
        start < step.order.anchor < one.room.position and step.membership != JOIN for step in steps
    )


def end_of_stay(room: UserRoom, steps: Sequence[MembershipStep]) -> int | None:
    """The anchor of the first own leave after the join that the user log knows; None if there is none."""
    for step in steps:
        if step.order.anchor > room.position and step.membership != JOIN:
            return step.order.anchor
    return None


def entries_by_kind(entries: Sequence[UserLogRow]) -> Mapping[int, list[UserLogRow]]:
    """The entries of the user log by kind, in order."""
    kinds: dict[int, list[UserLogRow]] = {}
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry)
    return kinds
