"""The checks of an event that was received: by its auth events, the state before it and the current state.

Spec: S-S API §Checks performed on receipt of a PDU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixcore.auth_events import auth_state_keys
from matrixcore.auth_rules import check_auth, check_auth_events, check_current_state
from matrixcore.events import Event
from matrixcore.identifiers import EventId, StateKey
from matrixcore.verdicts import ACCEPTED, Accepted, Rejected, SoftFailed
from services.rooms.room_past import RoomPast, State
from services.rooms.room_work import RoomWork
from tessera.storage.state_loading import EventPlace


@dataclass(frozen=True, slots=True)
class Missing:
    """What an event refers to and is not here; whether an outlier suffices."""

    events: dict[EventId, bool]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the checks came to.

    Attributes:
        before: the state before the event; None where it is the room's current state.
        prev_places: of its prev events.
    """

    verdict: Accepted | SoftFailed | Rejected
    before: State | None
    prev_places: dict[EventId, EventPlace]


async def judge(work: RoomWork, past: RoomPast, event: Event, *, is_history: bool = False) -> Judged | Missing:
    """Check an event of the room's DAG.

    Args:
        is_history: it is placed below what is here, so that current state says nothing of it.

    Raises:
        StateNotLoaded
    """
    places = await past.find_places(event.prev_events)
    auth_events = await past.find_events(event.auth_events)
    missing = {cited: True for cited in event.auth_events if cited not in auth_events}
    missing |= {prev: False for prev in event.prev_events if prev not in places or places[prev].is_outlier}
    if missing:
        return Missing(missing)
    past.learn(event)
    is_linear = not is_history and set(event.prev_events) == set(work.extremities)
    before = None if is_linear else await past.resolve(await past.states_after(list(places.values())))
    verdict = check_by_auth_events(work, past, event, list(auth_events.values()))
    if isinstance(verdict, Accepted):
        keys = auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules)
        current = _current(work, keys)
        there = current if before is None else await past.get_state_events(before, keys)
        verdict = check_auth(event, there, create=work.create_event())
        if isinstance(verdict, Accepted) and before is not None and not is_history:
            return Judged(check_current_state(event, current, create=work.create_event()), before, places)
    return Judged(verdict, before, places)


async def judge_outlier(work: RoomWork, past: RoomPast, event: Event) -> Judged | Missing:
    """Check an event that is wanted as an auth event only, by its own auth events."""
    auth_events = await past.find_events(event.auth_events)
    missing = {cited: True for cited in event.auth_events if cited not in auth_events}
    if missing:
        return Missing(missing)
    past.learn(event)
    return Judged(check_by_auth_events(work, past, event, list(auth_events.values())), None, {})


def check_by_auth_events(
    work: RoomWork, past: RoomPast, event: Event, auth_events: Sequence[Event]
) -> Accepted | Rejected:
    """Check an event by the auth events that it cites, all of which have been found."""
    verdict = check_auth_events(event, auth_events, past.rejected_among(event.auth_events))
    if not isinstance(verdict, Accepted):
        return verdict
    state = {cited.state_tuple: cited for cited in auth_events}
    verdict = check_auth(event, state, create=work.create_event())
    return verdict if isinstance(verdict, Rejected) else ACCEPTED


def _current(work: RoomWork, keys: Sequence[StateKey]) -> dict[StateKey, Event]:
    return {key: found for key in keys if (found := work.state(key)) is not None}
