"""One user's view of a room's history. Spec: C-S API §Room History Visibility."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixcore.identifiers import EventId, UserId
from matrixcore.visibility import HistoryVisibility, Membership, Sight
from tessera.records import OrderKey
from tessera.room_visibility import MembershipHistory, list_visible, sight_at, sight_of
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.members import MembershipStep

BOB = UserId("@bob:here.org")


def history(*steps: tuple[int, str]) -> MembershipHistory:
    return MembershipHistory(
        BOB, [MembershipStep(OrderKey(at), membership, EventId(f"${at}")) for at, membership in steps]
    )


def test_memberships_before_and_after_a_point() -> None:
    bob = history((10, "invite"), (20, "join"), (30, "leave"))
    assert bob.before(OrderKey(10)) is Membership.LEAVE
    assert bob.after(OrderKey(10)) is Membership.INVITE
    assert bob.before(OrderKey(20)) is Membership.INVITE
    assert bob.before(OrderKey(25)) is Membership.JOIN
    assert bob.before(OrderKey(30)) is Membership.JOIN
    assert bob.after(OrderKey(30)) is Membership.LEAVE
    assert (bob.current, bob.ever_joined) == (Membership.LEAVE, True)


def test_who_left_and_was_invited_again_sees_up_to_the_leave() -> None:
    bob = history((20, "join"), (30, "leave"), (40, "invite"))
    assert bob.end_of_stay == OrderKey(30)
    assert history((20, "join"), (30, "leave"), (40, "join")).end_of_stay is None
    assert history((10, "invite"), (30, "leave")).end_of_stay is None


def test_who_never_was_there_has_no_membership() -> None:
    nobody = history()
    assert (nobody.current, nobody.ever_joined, nobody.last_change) == (Membership.LEAVE, False, None)
    assert nobody.before(OrderKey(5)) is Membership.LEAVE


@pytest.mark.parametrize(
    ("setting", "at", "expected"),
    [
        ("shared", 5, Sight.FULL),  # before the join, which came later
        ("invited", 5, Sight.HIDDEN),
        ("invited", 15, Sight.FULL),
        ("joined", 15, Sight.HIDDEN),
        ("joined", 25, Sight.FULL),
        ("shared", 35, Sight.HIDDEN),  # after the leave
        ("world_readable", 35, Sight.FULL),
    ],
)
def test_sight_by_setting_and_membership(setting: str, at: int, expected: Sight) -> None:
    bob = history((10, "invite"), (20, "join"), (30, "leave"))
    assert sight_at(OrderKey(at), setting, bob) is expected


def test_the_own_leave_is_seen() -> None:
    bob = history((20, "join"), (30, "leave"))
    assert sight_at(OrderKey(30), "joined", bob, membership_after="leave") is Sight.FULL


def message_at(at: int, visibility: str) -> EventRow:
    values: dict[str, Any] = dict.fromkeys(EventRow._fields)
    found = {"anchor": at, "sub": 0, "type": "m.room.message", "sender": BOB, "history_visibility": visibility}
    return EventRow(**{**values, **found})


memberships = st.sampled_from([membership.value for membership in Membership])
settings_of_rooms = st.sampled_from([setting.value for setting in HistoryVisibility])


@given(
    steps=st.lists(st.tuples(st.integers(0, 30), memberships), max_size=5, unique_by=lambda step: step[0]),
    events=st.lists(st.builds(message_at, st.integers(0, 30), settings_of_rooms), max_size=8),
)
def test_a_list_is_seen_as_its_events_are(steps: list[tuple[int, str]], events: list[EventRow]) -> None:
    bob = history(*sorted(steps))
    assert list_visible(events, bob) == [event for event in events if sight_of(event, bob) is not Sight.HIDDEN]
    if bob.joined_throughout(events):
        assert {bob.before(event.order) for event in events} <= {Membership.JOIN}
        assert {bob.after(event.order) for event in events} <= {Membership.JOIN}
