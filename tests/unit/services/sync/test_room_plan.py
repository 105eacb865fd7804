"""Which rooms an answer holds: the user log decides. Spec: C-S API §Syncing."""

from itertools import pairwise

import orjson
import pytest

from matrixcore.identifiers import EventId, RoomId, UserId
from services.sync.room_plan import (
    PlannedRoom,
    end_of_stay,
    is_interrupted,
    plan_incremental,
    plan_initial,
    plan_resync,
)
from tessera.records import OrderKey
from tessera.storage.room_reads.members import MembershipStep
from tessera.storage.user_log import UserLogKind, UserLogRow
from tessera.storage.user_rooms import UserRoom

ROOM = RoomId("!room:here.org")
BOB = UserId("@bob:here.org")


def row(membership: str, position: int = 9, *, forgotten: bool = False) -> UserRoom:
    return UserRoom(ROOM, membership, EventId("$e"), BOB, 1, 1, position, 1, forgotten, None)


def log(*path: str | None) -> list[UserLogRow]:
    """Entries that lead from one membership to the next."""
    entries = []
    for position, (before, after) in enumerate(pairwise(path), start=1):
        body = {"membership": after, "prev_membership": before, "prev_position": position - 1}
        entries.append(UserLogRow(position, UserLogKind.MEMBERSHIP, ROOM, "", orjson.dumps(body)))
    return entries


def place(path: tuple[str | None, ...], *, ignored: frozenset[UserId] = frozenset()) -> str:
    """Where the room goes after these memberships."""
    plan = plan_incremental([row(path[-1] or "leave")], log(*path), ignored)
    for name in ("stays", "entered", "left", "invites", "knocks"):
        if found := getattr(plan, name):
            flags = found[0] if isinstance(found[0], PlannedRoom) else None
            more = "" if flags is None or not flags.only_own_leave else " (own leave)"
            return name + more + (" again" if flags is not None and flags.is_new and flags.was_known else "")
    return "nowhere"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("join",), "stays"),
        (("join", "join"), "stays"),
        ((None, "join"), "entered"),
        (("invite", "join"), "entered"),
        (("leave", "join"), "entered"),
        (("join", "leave", "join"), "entered again"),
        (("join", "leave"), "left"),
        (("join", "leave", "ban"), "left"),
        ((None, "join", "leave"), "left"),
        (("invite", "leave"), "left (own leave)"),
        (("leave", "ban"), "left (own leave)"),
        ((None, "invite"), "invites"),
        (("invite", "invite"), "invites"),
        ((None, "knock"), "knocks"),
        (("invite",), "nowhere"),
        (("leave",), "nowhere"),
    ],
)
def test_incremental(path: tuple[str | None, ...], expected: str) -> None:
    assert place(path) == expected


def test_invites_of_ignored_users_are_not_told() -> None:
    assert place((None, "invite"), ignored=frozenset((BOB,))) == "nowhere"


def test_initial_tells_left_rooms_only_when_asked() -> None:
    rooms = [row("leave")]
    assert not plan_initial(rooms, include_leave=False, ignored=frozenset()).left
    assert plan_initial(rooms, include_leave=True, ignored=frozenset()).left
    assert not plan_initial([row("leave", forgotten=True)], include_leave=True, ignored=frozenset()).left


def test_after_a_restore_every_room_is_told_as_what_it_is() -> None:
    joined = plan_resync([row("join")], ignored=frozenset()).entered
    assert [(one.is_new, one.was_known) for one in joined] == [(True, True)], "limited, as the client may have it"
    assert len(plan_resync([row("invite")], ignored=frozenset()).invites) == 1
    assert plan_resync([row("invite")], ignored=frozenset({BOB})).invites == []
    assert len(plan_resync([row("knock")], ignored=frozenset()).knocks) == 1
    assert [one.only_own_leave for one in plan_resync([row("leave")], ignored=frozenset()).left] == [True]
    assert plan_resync([row("leave", forgotten=True)], ignored=frozenset()).left == []


def steps(*memberships: tuple[int, str]) -> list[MembershipStep]:
    return [MembershipStep(OrderKey(anchor), membership, EventId("$e")) for anchor, membership in memberships]


def test_a_stay_ends_with_the_first_leave_after_the_join_that_the_log_knows() -> None:
    history = steps((2, "join"), (4, "leave"), (6, "join"), (7, "join"), (8, "ban"), (9, "leave"))
    assert end_of_stay(row("join", 2), history) == 4
    assert end_of_stay(row("join", 6), history) == 8
    assert end_of_stay(row("join", 9), history) is None


def test_a_leave_between_two_joins_of_the_log_is_found() -> None:
    history = steps((2, "join"), (4, "leave"), (6, "join"))
    assert is_interrupted(PlannedRoom(row("join", 6), is_new=False, moved_from=2), history)
    assert not is_interrupted(PlannedRoom(row("join", 6), is_new=False, moved_from=5), history)
    assert not is_interrupted(PlannedRoom(row("join", 6), is_new=False), history)
