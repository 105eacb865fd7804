"""Replaying events on a state, keeping what the authorisation rules allow.

Spec: Room Version 2 §State resolution, "Iterative auth checks".
"""

from collections.abc import Container, Iterable, Mapping

from matrixcore.auth_events import auth_state_keys
from matrixcore.auth_rules import check_auth
from matrixcore.events import Event
from matrixcore.identifiers import EventId, StateKey
from matrixcore.verdicts import Accepted


def replay(
    state: dict[StateKey, EventId],
    ordered: Iterable[Event],
    events: Mapping[EventId, Event],
    rejected: Container[EventId],
    create: Event | None,
) -> None:
    """Apply to `state`, in order, every event that the state as it is by then allows.

    Where the state lacks a key that the rules need, the event's own auth event stands in, unless
    that was rejected.

    Args:
        events: whatever `state` holds under the keys that the rules look at, and all auth events.
        create: the create event where no event cites it (version 12), else None.
    """
    for event in ordered:
        if isinstance(check_auth(event, auth_state(event, state, events, rejected), create=create), Accepted):
            state[event.state_tuple] = event.event_id


def auth_state(
    event: Event,
    state: Mapping[StateKey, EventId],
    events: Mapping[EventId, Event],
    rejected: Container[EventId],
) -> dict[StateKey, Event]:
    """The part of the state that decides on the event, filled up from its auth events."""
    keys = auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules)
    relevant = {key: events[state[key]] for key in keys if key in state}
    if len(relevant) == len(keys):
        return relevant
    for event_id in event.auth_events:
        cited = events.get(event_id)
        if cited is None or cited.state_key is None or event_id in rejected:
            continue
        if cited.state_tuple in keys:
            relevant.setdefault(cited.state_tuple, cited)
    return relevant
