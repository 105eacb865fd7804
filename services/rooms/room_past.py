"""A room's past as the batch sees it: what is stored, and above it what the batch has made so far.

States are told by what makes them of the room's current state, so that a fork costs what has changed since and not
what the room has: a room of 20,000 is read as a whole only where a resolution has to walk all auth chains.

Spec: none; DESIGN.md sections 2 (10) and 4.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, StateKey
from matrixcore.state_res import AuthEdges, Resolution
from services.rooms.foreseeing import NOTHING, ForeseenRoom
from services.rooms.resolutions import Resolutions, Resolved, mark_of
from services.rooms.room_work import RoomWork
from tessera.records import OrderKey
from tessera.storage import backward_extremities, state_loading
from tessera.storage.database import Transaction
from tessera.storage.state_loading import EventPlace, decode_delta, just_below

EVENTS_ON_THE_LOOP = 300  # a resolution of more events leaves the event loop
KEYS_ON_THE_LOOP = 2_000  # so does one of a state with more keys
SLICE = 1_000  # events loaded by one query
PARSED_AT_ONCE = 200  # events; then others have their turn

T = TypeVar("T")
State = Mapping[StateKey, EventId | None]
"""A state: what it has where it differs from the room's current state, None where it lacks what that has."""


class AncestryIncomplete(Exception):
    """An event of a state or of an auth chain is not stored: the room's data are damaged."""


class RoomPast:
    """Reads places, events and states of one room; what it has read it keeps while it lives.

    A `State` is good until current state changes.
    """

    def __init__(self, tx: Transaction, work: RoomWork, foreseen: ForeseenRoom = NOTHING) -> None:
        self._tx = tx
        self._work = work
        self._places: dict[EventId, EventPlace | None] = dict(foreseen.places)
        self._events: dict[EventId, Event | None] = dict(foreseen.events)
        self._rejected: set[EventId] = set(foreseen.rejected)
        self._since: dict[OrderKey, dict[StateKey, EventId | None]] = {}  # what changed keys had there, as committed
        self._committed: dict[StateKey, EventId | None] = {}  # current state before this batch
        self._has_gaps = foreseen.has_gaps
        self._followed: dict[EventId, bool] = {}

    def learn(self, event: Event) -> None:
        """An event that is being judged: a resolution may ask for it."""
        self._events[event.event_id] = event

    async def find_places(self, event_ids: Iterable[EventId]) -> dict[EventId, EventPlace]:
        """The places of those of the events that are stored or made by this batch."""
        wanted = list(dict.fromkeys(event_ids))
        unknown = [e for e in wanted if e not in self._work.events and e not in self._places]
        for cut in _slices(unknown, SLICE):
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
        for cut in _slices([e for e in wanted if e not in self._events], SLICE):
            found = await state_loading.load_events(self._tx, work.room_id, cut)
            for part in _slices(cut, PARSED_AT_ONCE):
                self._take_events(part, found)
                if len(cut) > PARSED_AT_ONCE:
                    await asyncio.sleep(0)
        return {e: event for e in wanted if (event := self._events[e]) is not None}

    def _take_events(self, event_ids: Sequence[EventId], found: Mapping[EventId, tuple[bytes, bool]]) -> None:
        work = self._work
        for event_id in event_ids:
            pdu, rejected = found.get(event_id, (None, False))
            event = None if pdu is None else load_event(pdu, event_id, work.rules, room_id=work.room_id)
            self._events[event_id] = event
            if rejected:
                self._rejected.add(event_id)

    def rejected_among(self, event_ids: Iterable[EventId]) -> set[EventId]:
        """Those of events found before that were rejected."""
        return self._rejected.intersection(event_ids)

    async def is_followed(self, event_id: EventId) -> bool:
        """Whether an event of the room's history stands on this one, which comes only now: it is behind a gap."""
        made = self._work.rows.get("edges", ())
        if any(prev == event_id and self._work.events[after].anchor is not None for _, _, prev, after in made):
            return True
        if self._has_gaps is None:
            self._has_gaps = await backward_extremities.has_any(self._tx, self._work.room_id)
        if not self._has_gaps:
            return False
        if event_id not in self._followed:
            # Those that may be asked about next are among the ones that are not here.
            wanted = {event_id, *(one for one, place in self._places.items() if place is None)} - self._followed.keys()
            found = await state_loading.list_followed(self._tx, self._work.room_id, wanted)
            self._followed.update((one, one in found) for one in wanted)
        return self._followed[event_id]

    async def states_after(self, places: Collection[EventPlace]) -> list[State]:
        """The state after each of the events."""
        await self._read_since({place.base for place in places})
        states = [self._raw_state(place) for place in places]
        await self._read_current(key for state in states for key in state)
        return [self._normal(state) for state in states]

    async def told_state(self, told: Mapping[StateKey, EventId]) -> State:
        """A state that is known as a whole."""
        whole = await state_loading.load_current_state(self._tx, self._work.room_id)
        for key in (*whole, *told):
            self._committed[key] = whole.get(key)
        for key, current in self._work.current.items():
            _set(whole, key, None if current is None else EventId(current[0]))
        state: dict[StateKey, EventId | None] = {key: None for key in whole if key not in told}
        state.update((key, event_id) for key, event_id in told.items() if whole.get(key) != event_id)
        return state

    async def with_event(self, state: State, event: Event) -> State:
        """A state after one more state event."""
        await self._read_current([event.state_tuple])
        return self._normal({**state, event.state_tuple: event.event_id})

    async def get_state_events(self, state: State, keys: Iterable[StateKey]) -> dict[StateKey, Event]:
        """What a state has at some keys, whose current events are in memory.

        Raises:
            StateNotLoaded
        """
        keys = list(keys)
        others = await self.find_events(event_id for key in keys if (event_id := state.get(key)) is not None)
        found: dict[StateKey, Event] = {}
        for key in keys:
            if key not in state:
                event = self._work.state(key)
            else:
                event_id = state[key]
                event = None if event_id is None else others[event_id]
            if event is not None:
                found[key] = event
        return found

    # Resolving

    async def resolve(self, states: Sequence[State]) -> State:
        """The one state that several, some of them the same perhaps, resolve to.

        Raises:
            AncestryIncomplete
        """
        distinct = [state for index, state in enumerate(states) if state not in states[:index]]
        if len(distinct) == 1:
            return distinct[0]
        keys = dict.fromkeys(key for state in distinct for key in state)
        differing = [key for key in keys if len({self._value(state, key) for state in distinct}) > 1]
        hot = self._work.hot
        known = hot.resolutions = hot.resolutions or Resolutions()
        marks = frozenset(self._mark(state) for state in distinct)
        resolved = known.find(marks)
        if resolved is None:
            resolved = await self._resolve_anew(distinct, differing, known)
            known.keep(marks, resolved)
        return self._normal({**distinct[0], **resolved})

    async def _resolve_anew(
        self, states: Sequence[State], differing: Sequence[StateKey], known: Resolutions
    ) -> Resolved:
        agreed = await self._agreed(states[0], differing)
        sides = [
            {key: value for key in differing if (value := self._value(state, key)) is not None} for state in states
        ]
        run = _run_in_thread if len(agreed) > KEYS_ON_THE_LOOP else _run_here
        try:
            resolution = await run(partial(Resolution, self._work.rules, sides, agreed=agreed, graph=known.graph))
            while missing := await run(resolution.missing_edges):
                for cut in _slices(missing, SLICE):
                    resolution.add_edges(await self._get_edges(cut))
        except BaseException:
            # The next resolution must not be asked for what only this one wanted.
            known.forget_graph()
            raise
        count = 0
        while missing := await run(resolution.missing_events):
            events = await self._get_events(missing)
            count += len(events)
            resolution.add_events(events, self.rejected_among(missing))
            run = _run_in_thread if count > EVENTS_ON_THE_LOOP else run
        resolved = await run(resolution.resolve)
        return {key: resolved.get(key) for key in differing}

    async def _agreed(self, state: State, differing: Iterable[StateKey]) -> dict[StateKey, EventId]:
        """All that the states have in common."""
        whole = await state_loading.load_current_state(self._tx, self._work.room_id)
        for key, current in self._work.current.items():
            _set(whole, key, None if current is None else EventId(current[0]))
        for key, event_id in state.items():
            _set(whole, key, event_id)
        for key in differing:
            whole.pop(key, None)
        return whole

    async def _get_events(self, event_ids: Sequence[EventId]) -> list[Event]:
        found = await self.find_events(event_ids)
        if len(found) < len(event_ids):
            raise AncestryIncomplete(", ".join(event_id for event_id in event_ids if event_id not in found))
        return list(found.values())

    async def _get_edges(self, event_ids: Sequence[EventId]) -> list[AuthEdges]:
        """What events cite, without making events of them."""
        work = self._work
        edges = [AuthEdges.read(e, work.events[e].pdu, work.rules) for e in event_ids if e in work.events]
        edges += [AuthEdges.of(event) for e in event_ids if e not in work.events and (event := self._events.get(e))]
        unknown = set(event_ids).difference(one.event_id for one in edges)
        if unknown:
            found = await state_loading.load_events(self._tx, work.room_id, list(unknown))
            if len(found) < len(unknown):
                raise AncestryIncomplete(", ".join(unknown.difference(found)))
            edges += [AuthEdges.read(event_id, pdu, work.rules) for event_id, (pdu, _) in found.items()]
        return edges

    # States by their differences

    def _mark(self, state: State) -> int:
        mark = self._work.state_mark
        for key, event_id in state.items():
            mark += mark_of(key, event_id) - mark_of(key, self._current_id(key))
        return mark

    def _value(self, state: State, key: StateKey) -> EventId | None:
        return state[key] if key in state else self._current_id(key)

    def _normal(self, state: State) -> State:
        """Without what is the same as in current state."""
        return {key: event_id for key, event_id in state.items() if event_id != self._current_id(key)}

    def _current_id(self, key: StateKey) -> EventId | None:
        if key in self._work.current:
            current = self._work.current[key]
            return None if current is None else EventId(current[0])
        return self._committed[key]

    def _raw_state(self, place: EventPlace) -> State:
        state = {**self._state_at(place.base), **place.delta}
        if place.state_key is not None and not place.is_rejected:
            state[place.state_key] = place.event_id
        return state

    def _state_at(self, order: OrderKey) -> dict[StateKey, EventId | None]:
        """What the room had at a place under every key that has changed since."""
        state = dict(self._since[order])
        for _, _, event_type, state_key, anchor, sub, event_id, _ in self._work.rows.get("history", ()):
            key = (event_type, state_key)
            if (anchor, sub) <= order:
                state[key] = event_id
            else:
                state.setdefault(key, self._work.replaced[key])
        return state

    async def _read_since(self, orders: Collection[OrderKey]) -> None:
        unknown = [order for order in orders if order not in self._since]
        if not unknown:
            return
        found = await state_loading.load_changed_since(self._tx, self._work.room_id, unknown)
        for order, changed_keys in zip(unknown, found, strict=True):
            self._since[order] = {key: there for key, (there, _) in changed_keys.items()}
            self._committed.update((key, now) for key, (_, now) in changed_keys.items())

    async def _read_current(self, keys: Iterable[StateKey]) -> None:
        """Make `_current_id` answer for these keys."""
        work = self._work
        self._committed.update(work.replaced)
        unknown: dict[StateKey, None] = {}
        for key in keys:
            if key in self._committed:
                continue
            if key in work.hot.state:
                event = work.hot.state[key]
                self._committed[key] = None if event is None else event.event_id
            else:
                unknown[key] = None
        if unknown:
            found = await state_loading.find_current(self._tx, work.room_id, unknown)
            self._committed.update((key, found.get(key)) for key in unknown)

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


async def _run_in_thread(function: Callable[[], T]) -> T:
    return await asyncio.to_thread(function)


async def _run_here(function: Callable[[], T]) -> T:
    return function()


def _set(state: dict[StateKey, EventId], key: StateKey, event_id: EventId | None) -> None:
    if event_id is None:
        state.pop(key, None)
    else:
        state[key] = event_id


def _slices(event_ids: Sequence[EventId], size: int) -> Iterable[Sequence[EventId]]:
    return (event_ids[start : start + size] for start in range(0, len(event_ids), size))
