"""A room's past as the batch sees it: what is stored, and above it what the batch has made so far.

Spec: none; DESIGN.md section 4.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence

from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, StateKey
from matrixcore.state_res import AuthEdges, Resolution, StateMap
from services.rooms.room_work import RoomWork
from tessera.records import OrderKey
from tessera.storage import state_loading
from tessera.storage.database import Transaction
from tessera.storage.state_loading import EventPlace, decode_delta, just_below

EVENTS_ON_THE_LOOP = 300  # a resolution of more events leaves the event loop
SLICE = 2_000  # events loaded by one query

State = Mapping[StateKey, EventId]


class AncestryIncomplete(Exception):
    """An event of a state or of an auth chain is not stored: the room's data are damaged."""


class RoomPast:
    """Reads places, events and states of one room; what it has read it keeps while it lives."""

    def __init__(self, tx: Transaction, work: RoomWork) -> None:
        self._tx = tx
        self._work = work
        self._places: dict[EventId, EventPlace | None] = {}
        self._events: dict[EventId, Event | None] = {}
        self._rejected: set[EventId] = set()
        self._states: dict[OrderKey, dict[StateKey, EventId]] = {}

    def learn(self, event: Event) -> None:
        """An event that is being judged: a resolution may ask for it."""
        self._events[event.event_id] = event

    async def find_places(self, event_ids: Iterable[EventId]) -> dict[EventId, EventPlace]:
        """The places of those of the events that are stored or made by this batch."""
        wanted = list(dict.fromkeys(event_ids))
        unknown = [e for e in wanted if e not in self._work.events and e not in self._places]
        for cut in _slices(unknown):
            found = await state_loading.find_places(self._tx, self._work.room_id, cut)
            self._places.update((event_id, found.get(event_id)) for event_id in cut)
        places = ((e, self._made_place(e) if e in self._work.events else self._places[e]) for e in wanted)
        return {event_id: place for event_id, place in places if place is not None}

    async def find_events(self, event_ids: Iterable[EventId]) -> dict[EventId, Event]:
        """Those of the events that are stored or made by this batch, outliers too."""
        wanted = list(dict.fromkeys(event_ids))
        work = self._work
        for event_id in wanted:
            row = work.events.get(event_id)
            if row is not None:
                self._events[event_id] = load_event(row.pdu, event_id, work.rules, room_id=work.room_id)
                if row.rejected is not None:
                    self._rejected.add(event_id)
        for cut in _slices([e for e in wanted if e not in self._events]):
            found = await state_loading.load_events(self._tx, work.room_id, cut)
            for event_id in cut:
                pdu, rejected = found.get(event_id, (None, False))
                self._events[event_id] = (
                    None if pdu is None else load_event(pdu, event_id, work.rules, room_id=work.room_id)
                )
                if rejected:
                    self._rejected.add(event_id)
        return {e: event for e in wanted if (event := self._events[e]) is not None}

    def rejected_among(self, event_ids: Iterable[EventId]) -> set[EventId]:
        """Those of events found before that were rejected."""
        return self._rejected.intersection(event_ids)

    async def current_state(self) -> dict[StateKey, EventId]:
        """The whole current state."""
        state = await state_loading.load_current_state(self._tx, self._work.room_id)
        for key, current in self._work.current.items():
            if current is None:
                state.pop(key, None)
            else:
                state[key] = EventId(current[0])
        return state

    async def states_after(self, places: Collection[EventPlace]) -> list[State]:
        """The states after events, without those that are the same as an earlier one."""
        states: list[State] = []
        for place in places:
            state = changed(await self._state_at(place.base), place.delta)
            if place.state_key is not None and not place.is_rejected:
                state[place.state_key] = place.event_id
            if state not in states:
                states.append(state)
        return states

    async def resolve(self, states: Sequence[State]) -> State:
        """The one state that several resolve to.

        Raises:
            AncestryIncomplete
        """
        distinct = [state for index, state in enumerate(states) if state not in states[:index]]
        if len(distinct) == 1:
            return distinct[0]
        resolution = Resolution(self._work.rules, distinct)
        while missing := resolution.missing_edges():
            events = await self._get_events(missing)
            resolution.add_edges([AuthEdges.of(event) for event in events])
        count = 0
        while missing := resolution.missing_events():
            events = await self._get_events(missing)
            count += len(events)
            resolution.add_events(events, self.rejected_among(missing))
        if count > EVENTS_ON_THE_LOOP:
            return await asyncio.to_thread(resolution.resolve)
        return resolution.resolve()

    async def get_state_events(self, state: StateMap, keys: Iterable[StateKey]) -> dict[StateKey, Event]:
        """What a state has at some keys."""
        wanted = {key: state[key] for key in keys if key in state}
        events = await self.find_events(wanted.values())
        return {key: events[event_id] for key, event_id in wanted.items()}

    async def _get_events(self, event_ids: Sequence[EventId]) -> list[Event]:
        found = await self.find_events(event_ids)
        if len(found) < len(event_ids):
            raise AncestryIncomplete(", ".join(event_id for event_id in event_ids if event_id not in found))
        return list(found.values())

    async def _state_at(self, order: OrderKey) -> dict[StateKey, EventId]:
        state = self._states.get(order)
        if state is None:
            state = await state_loading.load_state_at(self._tx, self._work.room_id, order)
            for _, _, event_type, state_key, anchor, sub, event_id, _ in self._work.rows.get("history", ()):
                if (anchor, sub) > order:
                    continue
                if event_id is None:
                    state.pop((event_type, state_key), None)
                else:
                    state[event_type, state_key] = event_id
            self._states[order] = state
        return state

    def _made_place(self, event_id: EventId) -> EventPlace:
        """The place of an event of this batch."""
        row = self._work.events[event_id]
        order = None if row.anchor is None else OrderKey(row.anchor, row.sub or 0)
        base, delta = OrderKey(0) if order is None else just_below(order), b"[]"
        for _, _, forked_id, anchor, sub, data in self._work.rows.get("forked_states", ()):
            if forked_id == event_id:
                base, delta = OrderKey(anchor, sub), data
        key = None if row.state_key is None else (row.type, row.state_key)
        pdu = row.pdu if order is None else None
        return EventPlace(event_id, order, row.outlier, row.rejected is not None, key, base, decode_delta(delta), pdu)


def changed(state: State, delta: Mapping[StateKey, EventId | None]) -> dict[StateKey, EventId]:
    """A copy of a state with a difference applied."""
    result = dict(state)
    for key, event_id in delta.items():
        if event_id is None:
            result.pop(key, None)
        else:
            result[key] = event_id
    return result


def difference(before: State, after: State) -> dict[StateKey, EventId | None]:
    """What makes one state of another; None where a key goes."""
    delta: dict[StateKey, EventId | None] = {
        key: event_id for key, event_id in after.items() if before.get(key) != event_id
    }
    delta.update((key, None) for key in before if key not in after)
    return delta


def _slices(event_ids: Sequence[EventId]) -> Iterable[Sequence[EventId]]:
    return (event_ids[start : start + SLICE] for start in range(0, len(event_ids), SLICE))
