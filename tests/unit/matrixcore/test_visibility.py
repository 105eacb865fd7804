"""The whole table of history visibility, for users and for servers."""

import itertools

import pytest

from matrixcore.visibility import (
    HistoryVisibility,
    Membership,
    Sight,
    parse_history_visibility,
    parse_membership,
    server_sight,
    user_sight,
)

WORLD, SHARED, INVITED, JOINED = HistoryVisibility
JOIN, INVITE, KNOCK, LEAVE, BAN = Membership

# Each setting with the memberships that see an event now, and those that see it after joining later.
SEEN = {
    WORLD: ({JOIN, INVITE, KNOCK, LEAVE, BAN}, {JOIN, INVITE, KNOCK, LEAVE, BAN}),
    SHARED: ({JOIN}, {JOIN, INVITE, KNOCK, LEAVE, BAN}),
    INVITED: ({JOIN, INVITE}, {JOIN, INVITE}),
    JOINED: ({JOIN}, {JOIN}),
}


@pytest.mark.parametrize(
    ("visibility", "membership", "joined_later"), list(itertools.product(HistoryVisibility, Membership, (False, True)))
)
def test_every_combination(visibility, membership, joined_later):
    sight = user_sight(visibility, membership, joined_later=joined_later)
    assert sight is (Sight.FULL if membership in SEEN[visibility][joined_later] else Sight.HIDDEN)


@pytest.mark.parametrize(
    ("visibility", "before", "after", "joined_later"),
    list(itertools.product(HistoryVisibility, Membership, Membership, (False, True))),
)
def test_own_membership_events_are_seen_if_either_side_allows(visibility, before, after, joined_later):
    expected = bool({before, after} & SEEN[visibility][joined_later])
    sight = user_sight(visibility, before, joined_later=joined_later, membership_after=after)
    assert (sight is Sight.FULL) is expected


@pytest.mark.parametrize(
    ("before", "after", "membership", "joined_later"),
    list(itertools.product(HistoryVisibility, HistoryVisibility, Membership, (False, True))),
)
def test_changes_of_the_visibility_are_seen_if_either_side_allows(before, after, membership, joined_later):
    expected = membership in SEEN[before][joined_later] | SEEN[after][joined_later]
    sight = user_sight(before, membership, joined_later=joined_later, visibility_after=after)
    assert (sight is Sight.FULL) is expected


def test_an_erased_sender_is_redacted_for_those_who_were_not_there():
    assert user_sight(SHARED, LEAVE, joined_later=True, sender_erased=True) is Sight.REDACTED
    assert user_sight(WORLD, INVITE, joined_later=False, sender_erased=True) is Sight.REDACTED
    assert user_sight(SHARED, JOIN, joined_later=True, sender_erased=True) is Sight.FULL
    assert user_sight(JOINED, LEAVE, joined_later=True, sender_erased=True) is Sight.HIDDEN


@pytest.mark.parametrize(
    ("visibility", "joined", "invited"), list(itertools.product(HistoryVisibility, (False, True), (False, True)))
)
def test_servers(visibility, joined, invited):
    expected = visibility in (WORLD, SHARED) or joined or (invited and visibility is INVITED)
    sight = server_sight(visibility, had_joined_user=joined, had_invited_user=invited)
    assert sight is (Sight.FULL if expected else Sight.HIDDEN)


def test_servers_see_changes_of_the_visibility_and_no_text_of_the_erased():
    seen = server_sight(JOINED, had_joined_user=False, had_invited_user=False, visibility_after=SHARED)
    assert seen is Sight.FULL
    erased = {"had_invited_user": False, "sender_erased": True}
    assert server_sight(SHARED, had_joined_user=False, **erased) is Sight.REDACTED
    assert server_sight(SHARED, had_joined_user=True, **erased) is Sight.FULL


def test_unknown_values():
    assert parse_history_visibility("joined") is JOINED
    assert parse_history_visibility("odd") is parse_history_visibility(None) is parse_history_visibility([]) is SHARED
    assert parse_membership("ban") is BAN
    assert parse_membership("odd") is parse_membership(None) is LEAVE
