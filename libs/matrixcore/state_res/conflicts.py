"""What states agree on and what they do not."""

from collections.abc import Mapping, Sequence

from matrixcore.identifiers import EventId, StateKey

StateMap = Mapping[StateKey, EventId]
ConflictedState = Mapping[StateKey, frozenset[EventId]]


def separate_conflicted(state_sets: Sequence[StateMap]) -> tuple[StateMap, ConflictedState]:
    """Divide the states of one room into what they agree on and what they do not.

    Spec: Room Version 2 §State resolution, "Unconflicted state map and conflicted state set".

    Args:
        state_sets: n >= 1 maps (event type, state key) -> event ID, all of the same room.

    Returns:
        (unconflicted, conflicted): disjoint keys that together cover every key seen. A key
        missing from any one set is conflicted, even where the other sets agree on it.
    """
    unconflicted: dict[StateKey, EventId] = {}
    conflicted: dict[StateKey, frozenset[EventId]] = {}
    for key, votes in _votes(state_sets).items():
        distinct = frozenset(votes)
        if len(votes) == len(state_sets) and len(distinct) == 1:
            unconflicted[key] = votes[0]
        else:
            conflicted[key] = distinct
    return unconflicted, conflicted


def separate_conflicted_v1(state_sets: Sequence[StateMap]) -> tuple[StateMap, ConflictedState]:
    """The same for version 1, where a key missing from some sets is no conflict if the others agree.

    Spec: Room Version 1 §State resolution, "A conflict occurs between states where ...".
    """
    unconflicted: dict[StateKey, EventId] = {}
    conflicted: dict[StateKey, frozenset[EventId]] = {}
    for key, votes in _votes(state_sets).items():
        distinct = frozenset(votes)
        if len(distinct) == 1:
            unconflicted[key] = votes[0]
        else:
            conflicted[key] = distinct
    return unconflicted, conflicted


def _votes(state_sets: Sequence[StateMap]) -> dict[StateKey, list[EventId]]:
    """Each key with the events that the sets have for it; in the order of the sets, so without the hash seed."""
    votes: dict[StateKey, list[EventId]] = {}
    for state in state_sets:
        for key, event_id in state.items():
            votes.setdefault(key, []).append(event_id)
    return votes
