"""Known forks, resolved by each algorithm."""

from hashlib import sha1

import pytest
from room_history import ALICE, BOB, CHARLIE, DAN, RoomHistory, State

from matrixcore.auth_events import CREATE, JOIN_RULES, POWER_LEVELS
from matrixcore.state_res import AuthEdges, Resolution, resolve_state, separate_conflicted, separate_conflicted_v1

TOPIC = ("m.room.topic", "")

V2_VERSIONS = ["2", "6", "10", "12"]


def member(user_id):
    return ("m.room.member", user_id)


def resolve(room: RoomHistory, *states: State, rejected=frozenset()) -> State:
    forwards = resolve_state(room.rules, states, room.events, rejected)
    assert resolve_state(room.rules, states[::-1], room.events, rejected) == forwards
    return dict(forwards)


def test_a_key_that_one_state_lacks_is_conflicted_except_in_version_1():
    states = [{TOPIC: "$a", CREATE: "$c"}, {CREATE: "$c"}]
    assert separate_conflicted(states) == ({CREATE: "$c"}, {TOPIC: frozenset({"$a"})})
    assert separate_conflicted_v1(states) == ({CREATE: "$c", TOPIC: "$a"}, {})


@pytest.mark.parametrize("version", ["1", *V2_VERSIONS])
def test_a_fork_without_quarrel_keeps_both_sides(version):
    room = RoomHistory(version)
    base = room.public_room()
    left = room.member("bob_joins", base, BOB, BOB, "join")
    right = room.topic("topic", base, ALICE)
    assert resolve(room, left, right) == left | right


@pytest.mark.parametrize("version", V2_VERSIONS)
def test_a_ban_beats_what_the_banned_did_meanwhile(version):
    room = RoomHistory(version)
    levels = {BOB: 50} if version == "12" else {ALICE: 100, BOB: 50}
    base = room.public_room(BOB, levels=levels)
    banned = room.member("ban", base, ALICE, BOB, "ban")
    busy = room.topic("bobs_topic", base, BOB)
    busy = room.member("bob_bans", busy, BOB, CHARLIE, "ban")
    resolved = resolve(room, banned, busy)
    assert resolved[member(BOB)] == "$ban"
    assert TOPIC not in resolved
    assert member(CHARLIE) not in resolved


@pytest.mark.parametrize("version", V2_VERSIONS)
def test_the_higher_power_wins_a_race_of_power_levels_whatever_the_clock_says(version):
    room = RoomHistory(version)
    levels = {BOB: 50} if version == "12" else {ALICE: 100, BOB: 50}
    base = room.public_room(BOB, CHARLIE, levels=levels)
    demoted = room.levels("demote_bob", base, ALICE, {user: 100 for user in levels if user != BOB}, at=1_000)
    promoted = room.levels("promote_charlie", base, BOB, {**levels, CHARLIE: 50}, at=1)
    assert resolve(room, demoted, promoted)[POWER_LEVELS] == "$demote_bob"


@pytest.mark.parametrize("version", V2_VERSIONS)
def test_equal_powers_are_ordered_by_time_then_event_id(version):
    room = RoomHistory(version)
    base = room.public_room()
    early = room.topic("z", base, ALICE, at=100)
    late = room.topic("a", base, ALICE, at=200)
    assert resolve(room, early, late)[TOPIC] == "$a"
    same_time = room.topic("b", base, ALICE, at=200)
    assert resolve(room, late, same_time)[TOPIC] == "$b"


@pytest.mark.parametrize("version", V2_VERSIONS)
def test_who_has_been_agreed_on_is_not_replayed(version):
    """By the letter each join is in the chain of one state alone, and whoever joined first loses to the other."""
    room = RoomHistory(version)
    base = room.public_room(BOB, CHARLIE)
    levels = {BOB: 100, CHARLIE: 100} | ({} if version == "12" else {ALICE: 100})
    base = room.levels("raised", base, ALICE, levels)
    late = room.levels("of_bob", base, BOB, {**levels, DAN: 1}, at=2_000)
    early = room.levels("of_charlie", base, CHARLIE, {**levels, DAN: 2}, at=1_000)
    assert resolve(room, late, early)[POWER_LEVELS] == "$of_bob"


@pytest.mark.parametrize("version", V2_VERSIONS)
def test_a_join_to_a_room_that_was_closed_meanwhile_fails(version):
    room = RoomHistory(version)
    base = room.public_room()
    closed = room.join_rule("closed", base, ALICE, "invite", at=50)
    evader = room.member("evade", base, DAN, DAN, "join", at=1)
    resolved = resolve(room, closed, evader)
    assert resolved[JOIN_RULES] == "$closed"
    assert member(DAN) not in resolved


@pytest.mark.parametrize("version", V2_VERSIONS)
def test_topics_follow_the_mainline_before_the_clock(version):
    room = RoomHistory(version)
    levels = {BOB: 50} if version == "12" else {ALICE: 100, BOB: 50}
    base = room.public_room(BOB, levels=levels)
    old_topic = room.topic("old_levels_topic", base, BOB, at=9_000)
    newer = room.levels("newer_levels", base, ALICE, {**levels, CHARLIE: 10})
    new_topic = room.topic("new_levels_topic", newer, BOB, at=10)
    # The clock favours the first, but the second was sent under later power levels.
    assert resolve(room, old_topic, new_topic)[TOPIC] == "$new_levels_topic"


@pytest.mark.parametrize("version", V2_VERSIONS)
def test_a_topic_of_somebody_demoted_at_the_same_time_is_undone(version):
    room = RoomHistory(version)
    levels = {BOB: 50} if version == "12" else {ALICE: 100, BOB: 50}
    base = room.public_room(BOB, levels=levels)
    base = room.topic("agreed", base, ALICE)
    demoted = room.levels("demote", base, ALICE, {user: 100 for user in levels if user != BOB})
    vandalised = room.topic("vandalised", base, BOB, at=5_000)
    resolved = resolve(room, demoted, vandalised)
    assert resolved[POWER_LEVELS] == "$demote"
    assert resolved[TOPIC] == "$agreed"


@pytest.mark.parametrize("version", V2_VERSIONS)
def test_a_rejected_auth_event_gives_no_permission(version):
    room = RoomHistory(version)
    base = room.join_rule("closed", room.public_room(), ALICE, "invite")
    room.member("dans_forged_join", base, DAN, DAN, "join")
    auth = ["levels", "dans_forged_join"] if version == "12" else ["create", "levels", "dans_forged_join"]
    forged = room.add("forged", base, DAN, "org.example.open", "", {}, auth=auth)
    levels = room.events["$levels"]
    levels.content["state_default"] = 0
    quiet = room.topic("quiet", base, ALICE)
    assert resolve(room, forged, quiet).get(("org.example.open", "")) == "$forged"
    rejected = frozenset({"$dans_forged_join"})
    assert ("org.example.open", "") not in resolve(room, forged, quiet, rejected=rejected)


def test_problem_a_of_msc4297_the_state_agreed_on_must_not_undo_older_conflicted_state():
    """Alice set both join rules and has left; a stale /state answer brings the older ones back."""
    outcomes = {}
    for version in ("11", "12"):
        room = RoomHistory(version)
        state = room.create()
        levels = {BOB: 100} if version == "12" else {ALICE: 100, BOB: 100}
        state = room.levels("levels", state, ALICE, levels)
        state = room.join_rule("first_rule", state, ALICE, "public")
        state = room.member("bob_joins", state, BOB, BOB, "join")
        state = room.join_rule("second_rule", state, ALICE, "invite")
        state = room.member("charlie_invited", state, BOB, CHARLIE, "invite")
        right = room.member("alice_leaves", state, ALICE, ALICE, "leave")
        stale = {**right, JOIN_RULES: "$first_rule"}
        outcomes[version] = resolve(room, right, stale).get(JOIN_RULES)
    assert outcomes == {"11": None, "12": "$second_rule"}


def test_problem_b_of_msc4297_promotions_in_between_are_replayed():
    """Alice promoted Bob, Bob promoted Charlie; a stale answer brings back the levels before both."""
    outcomes = {}
    for version in ("11", "12"):
        room = RoomHistory(version)
        admin = {} if version == "12" else {ALICE: 100}
        state = room.public_room(BOB, CHARLIE, levels=admin)
        old = state
        state = room.levels("promote_bob", state, ALICE, {**admin, BOB: 50})
        state = room.levels("promote_charlie", state, BOB, {**admin, BOB: 50, CHARLIE: 50})
        left = room.topic("newest", state, CHARLIE)
        # The stale side has seen all events by their auth chains and claims the oldest levels.
        right = {**room.add("seen", state, CHARLIE, "org.example.seen", "", {}), POWER_LEVELS: old[POWER_LEVELS]}
        outcomes[version] = resolve(room, left, right).get(POWER_LEVELS)
    assert outcomes == {"11": "$levels", "12": "$promote_charlie"}


def test_events_in_a_cycle_are_left_out_and_everything_ends():
    room = RoomHistory("2")  # its events choose their IDs
    base = room.public_room(BOB)
    one = room.levels("one", base, ALICE, {ALICE: 100}, auth=["create", "creator_join", "two"])
    two = room.levels("two", base, ALICE, {ALICE: 100, BOB: 1}, auth=["create", "creator_join", "one"])
    resolved = resolve(room, one, two)
    assert POWER_LEVELS not in resolved
    assert resolved[member(BOB)] == base[member(BOB)]


class TestVersion1:
    def test_power_levels_run_from_the_shallowest_while_allowed(self):
        room = RoomHistory("1")
        base = room.public_room(BOB, levels={ALICE: 100, BOB: 50})
        shallow = room.levels("shallow", base, ALICE, {ALICE: 100}, depth=100)
        deep = room.levels("deep", base, BOB, {ALICE: 100, BOB: 50, CHARLIE: 50}, depth=200)
        # After the shallow ones, Bob has no power to set the deeper ones.
        assert resolve(room, shallow, deep)[POWER_LEVELS] == "$shallow"
        deeper = room.levels("deeper", base, ALICE, {ALICE: 100, BOB: 49}, depth=300)
        assert resolve(room, shallow, deeper)[POWER_LEVELS] == "$deeper"

    def test_other_state_takes_the_deepest_allowed(self):
        room = RoomHistory("1")
        base = room.public_room(BOB, levels={ALICE: 100, BOB: 50})
        fair = room.topic("fair", base, BOB, depth=100)
        deepest = room.topic("deepest", base, ALICE, depth=300)
        assert resolve(room, fair, deepest)[TOPIC] == "$deepest"
        not_allowed = room.topic("not_allowed", base, DAN, depth=400)
        assert resolve(room, fair, not_allowed)[TOPIC] == "$fair"

    def test_a_key_with_nothing_allowed_keeps_the_shallowest(self):
        room = RoomHistory("1")
        base = room.public_room()
        states = [room.topic(f"t{depth}", base, DAN, depth=depth) for depth in (100, 200)]
        assert resolve(room, *states)[TOPIC] == "$t100"

    def test_equal_depths_are_ordered_by_sha1(self):
        room = RoomHistory("1")
        base = room.public_room()
        states = [room.topic(name, base, ALICE, depth=100) for name in ("x", "y", "z")]
        lowest = min(("$x", "$y", "$z"), key=lambda event_id: sha1(event_id.encode()).hexdigest())
        assert resolve(room, *states)[TOPIC] == lowest

    def test_join_rules_and_members_resolve_after_power_levels(self):
        room = RoomHistory("1")
        base = room.public_room(BOB)
        closed = room.join_rule("closed", base, ALICE, "invite", depth=100)
        closed = room.member("kick", closed, ALICE, BOB, "leave", depth=110)
        open_again = room.join_rule("open", base, ALICE, "public", depth=90)
        open_again = room.member("renamed", open_again, BOB, BOB, "join", depth=105)
        resolved = resolve(room, closed, open_again)
        assert resolved[JOIN_RULES] == "$closed"
        assert resolved[member(BOB)] == "$kick"


def test_loading_in_slices_gives_the_same_and_loads_no_more_than_needed():
    room = RoomHistory("10")
    base = room.public_room(BOB, CHARLIE, DAN)
    left = room.member("kick", base, ALICE, BOB, "leave")
    right = room.topic("topic", base, ALICE)
    resolution = Resolution(room.rules, [left, right])
    while ids := resolution.missing_edges():
        resolution.add_edges([AuthEdges.of(room.events[ids[0]])])
    loaded = []
    while ids := resolution.missing_events():
        loaded.append(ids[0])
        resolution.add_events([room.events[ids[0]]])
    assert resolution.resolve() == resolve_state(room.rules, [left, right], room.events)
    assert len(loaded) == len(set(loaded))
    assert base[member(CHARLIE)] not in loaded  # takes no part in the fork


def test_states_that_agree_need_nothing():
    room = RoomHistory("10")
    base = room.public_room(BOB)
    resolution = Resolution(room.rules, [base, dict(base)])
    assert resolution.is_trivial
    assert resolution.missing_edges() == []
    assert resolution.missing_events() == []
    assert resolution.resolve() == base
