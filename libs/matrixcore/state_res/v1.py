"""State resolution of room version 1. Spec: Room Version 1 §State resolution."""

from collections.abc import Iterable, Mapping
from hashlib import sha1

from matrixcore.auth_events import JOIN_RULES, POWER_LEVELS, auth_state_keys
from matrixcore.auth_rules import check_auth
from matrixcore.events import Event
from matrixcore.identifiers import EventId, StateKey
from matrixcore.state_res.conflicts import ConflictedState, StateMap
from matrixcore.verdicts import Accepted


def resolve_v1(
    unconflicted: StateMap, conflicted: ConflictedState, events: Mapping[EventId, Event]
) -> dict[StateKey, EventId]:
    """Resolve in passes: power levels, join rules, members, then all else.

    Conflicts of one pass do not see each other's results, so their order makes no difference.

    Args:
        events: all conflicted events, and the unconflicted ones under the keys that their authorisation needs.
    """
    resolved = dict(unconflicted)
    others = dict.fromkeys(conflicted)
    for keys in (
        [POWER_LEVELS],
        [JOIN_RULES],
        [key for key in conflicted if key[0] == "m.room.member"],
    ):
        present = [key for key in keys if key in conflicted]
        results = {
            key: _last_of_allowed_run(_oldest_first(conflicted[key], events), resolved, events) for key in present
        }
        resolved.update(results)
        for key in present:
            del others[key]
    results = {key: _newest_allowed(_oldest_first(conflicted[key], events), resolved, events) for key in others}
    return resolved | results


def _oldest_first(event_ids: Iterable[EventId], events: Mapping[EventId, Event]) -> list[Event]:
    """By ascending depth, then descending SHA-1 of the event ID."""
    newest_first = sorted(
        (events[event_id] for event_id in event_ids),
        key=lambda event: (-event.depth, sha1(event.event_id.encode(), usedforsecurity=False).digest()),
    )
    return newest_first[::-1]


def _last_of_allowed_run(ordered: list[Event], resolved: StateMap, events: Mapping[EventId, Event]) -> EventId:
    """Take the first, then each next one that the room would allow, up to one that it does not."""
    last = ordered[0]
    for event in ordered[1:]:
        if not _is_allowed(event, {**_auth_state(event, resolved, events), last.state_tuple: last}):
            break
        last = event
    return last.event_id


def _newest_allowed(ordered: list[Event], resolved: StateMap, events: Mapping[EventId, Event]) -> EventId:
    """The newest that the room allows; the oldest where it allows none, so that the key is not lost."""
    for event in reversed(ordered):
        if _is_allowed(event, _auth_state(event, resolved, events)):
            return event.event_id
    return ordered[0].event_id


def _is_allowed(event: Event, state: Mapping[StateKey, Event]) -> bool:
    return isinstance(check_auth(event, state), Accepted)


def _auth_state(event: Event, resolved: StateMap, events: Mapping[EventId, Event]) -> dict[StateKey, Event]:
    keys = auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules)
    return {key: events[resolved[key]] for key in keys if key in resolved}
