"""A resolution from its states to its result, with what must be loaded in between.

The caller owns the storage, so the steps are turned inside out:

    resolution = Resolution(rules, state_sets)
    while ids := resolution.missing_edges():
        resolution.add_edges(load_edges(ids))        # in slices of any size
    while ids := resolution.missing_events():
        resolution.add_events(load_events(ids))
    state = resolution.resolve()                      # CPU only; leave the event loop for it

Spec: Room Versions 1, 2 and 12, §State resolution.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Final

from matrixcore.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, StateKey
from matrixcore.room_versions import RoomVersionRules, StateResolution
from matrixcore.state_res.auth_graph import AuthEdges, AuthGraph, Node
from matrixcore.state_res.conflicts import ConflictedState, StateMap, separate_conflicted, separate_conflicted_v1
from matrixcore.state_res.iterative_checks import replay
from matrixcore.state_res.ordering import SenderPower, mainline_order, reverse_topological_power_order
from matrixcore.state_res.v1 import resolve_v1

# Unconflicted events whose chains are walked before looking whether that was enough; twice as many each time.
_FIRST_SLICE: Final = 500
_LAST_SLICE: Final = 4_000


class Resolution:
    """One resolution of n >= 1 states of a room.

    Args:
        state_sets: the states, whole or without what is in `agreed`.
        agreed: what all of them have in common and none of `state_sets` names.
        graph: a part of the room's auth DAG that is known already, with nothing missing in it; it grows.

    The missing_ methods may be called at any time and do no work twice. An event that the
    caller cannot find at all would be asked for again and again: that is the caller's error to raise.
    """

    def __init__(
        self,
        rules: RoomVersionRules,
        state_sets: Sequence[StateMap],
        *,
        agreed: StateMap | None = None,
        graph: AuthGraph | None = None,
    ) -> None:
        self._rules = rules
        self._algorithm = rules.state_resolution
        separate = separate_conflicted_v1 if self._algorithm is StateResolution.V1 else separate_conflicted
        self._unconflicted: StateMap
        self._conflicted: ConflictedState
        self._unconflicted, self._conflicted = separate(state_sets)
        if agreed:
            self._unconflicted = {**agreed, **self._unconflicted}
        self._events: dict[EventId, Event] = {}
        self._rejected: set[EventId] = set()
        self._graph = AuthGraph() if graph is None else graph
        self._difference: set[Node] | None = None
        self._full_conflicted: dict[EventId, Node] | None = None
        self._unwalked: list[EventId] = []  # unconflicted events whose chains have not been looked at
        self._walked: list[Node] = []
        self._slice = _FIRST_SLICE
        self._groups: list[list[Node]] = []
        self._wanted: Collection[EventId] | None = None
        if self._needs_graph:
            self._groups = self._conflicted_by_state(state_sets)
            self._unwalked = list(dict.fromkeys(self._unconflicted.values()))
            if self._algorithm is StateResolution.V2 and POWER_LEVELS in self._unconflicted:
                # They may become the head of the mainline, so their chain is needed in any case.
                self._graph.node(self._unconflicted[POWER_LEVELS])

    @property
    def is_trivial(self) -> bool:
        """Whether the states agree, so that nothing has to be loaded."""
        return not self._conflicted

    def missing_edges(self) -> list[EventId]:
        """Events whose auth_events are needed next; empty when the full conflicted set is known."""
        if not self._needs_graph or self._full_conflicted is not None:
            return []
        while True:
            missing = self._graph.missing()
            if missing:
                return missing
            if self._difference is None:
                difference = self._graph.difference_of_chains(self._groups)
                # Read by the letter, an event that every state has may be in the chain of one state alone. Synapse
                # has always counted a state's own events to its chain, and a server that does not ends in another
                # state than the rest of a room.
                agreed = frozenset(self._unconflicted.values())
                self._difference = {node for node in difference if self._graph.event_id(node) not in agreed}
            elif self._walked:
                # What an unconflicted event's chain holds, every state's chain holds.
                self._difference.difference_update(self._graph.chain(self._walked))
            if not self._difference or not self._unwalked:
                self._full_conflicted = self._full_conflicted_set(self._difference)
                return []
            cut = self._unwalked[: self._slice]
            del self._unwalked[: self._slice]
            self._slice = min(2 * self._slice, _LAST_SLICE)
            self._walked = [self._graph.node(event_id) for event_id in cut]

    def add_edges(self, edges: Iterable[AuthEdges]) -> None:
        """Take in what was asked for; more of the same chains may come along, to save rounds."""
        for edge in edges:
            self._graph.add(edge)

    def missing_events(self) -> list[EventId]:
        """Events whose bodies are needed next, once no edges are missing; empty when `resolve` can run."""
        if not self._conflicted:
            return []
        replayed = self._replayed_ids()
        missing = [event_id for event_id in replayed if event_id not in self._events]
        if missing:
            return missing
        if self._wanted is None:
            self._wanted = self._wanted_for([self._events[event_id] for event_id in replayed])
        return [event_id for event_id in self._wanted if event_id not in self._events]

    def _wanted_for(self, replayed: Sequence[Event]) -> Collection[EventId]:
        """What is looked at when these events are replayed."""
        wanted: dict[EventId, None] = {}
        if self._algorithm is not StateResolution.V1:
            wanted.update(dict.fromkeys(chain.from_iterable([event.auth_events for event in replayed])))
        if self._algorithm is not StateResolution.V2_1:
            wanted.update(dict.fromkeys(chain.from_iterable(map(self._unconflicted_for, replayed))))
        if self._rules.room_id_is_create_event_id:
            wanted.update(dict.fromkeys([_create_event_id(event.room_id) for event in replayed]))
        return wanted

    def add_events(self, events: Iterable[Event], rejected: Collection[EventId] = frozenset()) -> None:
        """Take in bodies; `rejected` names those of them that are stored as rejected."""
        for event in events:
            self._events[event.event_id] = event
        self._rejected.update(rejected)

    def resolve(self) -> StateMap:
        """The resolved state. Nothing may be missing any more; calling it again gives the same."""
        if not self._conflicted:
            return self._unconflicted
        if self._algorithm is StateResolution.V1:
            return resolve_v1(self._unconflicted, self._conflicted, self._events)
        return self._resolve_v2()

    def _resolve_v2(self) -> StateMap:
        """The five steps of the algorithm; v2.1 differs in the first state and the full conflicted set."""
        graph, full_conflicted = self._graph, self._full_conflicted
        assert full_conflicted is not None, "missing_edges() has not been answered"
        create = self._create_event()
        # 1. Power events, and what of their auth chains is conflicted.
        power_events = [node for node in full_conflicted.values() if _is_power_event(self._event_of(node))]
        conflicted_nodes = frozenset(full_conflicted.values())
        chosen = conflicted_nodes.intersection(graph.chain(power_events)).union(power_events)
        power = SenderPower(self._events, create)
        ordered = reverse_topological_power_order(graph, chosen, self._event_of, power)
        # 2. They are replayed on what the states agree on; since v2.1 on nothing.
        is_v2_1 = self._algorithm is StateResolution.V2_1
        state: dict[StateKey, EventId] = {} if is_v2_1 else dict(self._unconflicted)
        implied_create = create if self._rules.room_id_is_create_event_id else None
        replay(state, map(self._event_of, ordered), self._events, self._rejected, implied_create)
        # 3. and 4. All others, by the mainline of the power levels so found.
        power_levels = state.get(POWER_LEVELS)
        mainline_start = None if power_levels is None else graph.node(power_levels)
        remaining = conflicted_nodes - chosen
        ordered = mainline_order(graph, remaining, self._event_of, mainline_start)
        replay(state, map(self._event_of, ordered), self._events, self._rejected, implied_create)
        # 5. What the states agree on stands.
        state.update(self._unconflicted)
        return state

    @property
    def _needs_graph(self) -> bool:
        return bool(self._conflicted) and self._algorithm is not StateResolution.V1

    def _conflicted_by_state(self, state_sets: Sequence[StateMap]) -> list[list[Node]]:
        """The conflicted events of each state; states that have the same ones count once."""
        groups: dict[tuple[Node, ...], None] = {}
        for state in state_sets:
            found = [self._graph.node(state[key]) for key in self._conflicted if key in state]
            groups[tuple(found)] = None
        return [list(group) for group in groups]

    def _full_conflicted_set(self, difference: set[Node]) -> dict[EventId, Node]:
        nodes = {node for group in self._groups for node in group}
        if self._algorithm is StateResolution.V2_1:
            nodes = self._graph.subgraph_between(nodes)
        return {self._graph.event_id(node): node for node in nodes | difference}

    def _replayed_ids(self) -> Collection[EventId]:
        if self._algorithm is StateResolution.V1:
            return list(dict.fromkeys(event_id for votes in self._conflicted.values() for event_id in sorted(votes)))
        assert self._full_conflicted is not None, "missing_edges() has not been answered"
        return self._full_conflicted

    def _unconflicted_for(self, event: Event) -> list[EventId]:
        keys = auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules)
        return [self._unconflicted[key] for key in keys if key in self._unconflicted]

    def _event_of(self, node: Node) -> Event:
        return self._events[self._graph.event_id(node)]

    def _create_event(self) -> Event | None:
        """The room's create event: named by the room ID, or what the states agree on."""
        if self._rules.room_id_is_create_event_id:
            event = next(iter(self._events.values()))
            return self._events[_create_event_id(event.room_id)]
        event_id = self._unconflicted.get(CREATE)
        return None if event_id is None else self._events.get(event_id)


def resolve_state(
    rules: RoomVersionRules,
    state_sets: Sequence[StateMap],
    events: Mapping[EventId, Event],
    rejected: Collection[EventId] = frozenset(),
) -> StateMap:
    """Resolve n >= 1 states of a room whose events are all at hand.

    Args:
        events: the events of the states and their full auth chains; the create event too.
        rejected: IDs of events that are stored as rejected.

    Raises:
        KeyError: an event that the resolution needs is not in `events`.
    """
    resolution = Resolution(rules, state_sets)
    while missing := resolution.missing_edges():
        resolution.add_edges([AuthEdges.of(events[event_id]) for event_id in missing])
    while missing := resolution.missing_events():
        resolution.add_events([events[event_id] for event_id in missing], rejected)
    return resolution.resolve()


def _create_event_id(room_id: RoomId) -> EventId:
    """The create event of a room of version 12 on."""
    return EventId("$" + room_id[1:])


def _is_power_event(event: Event) -> bool:
    """Spec: Room Version 2 §State resolution, "Power events"."""
    if event.type in ("m.room.power_levels", "m.room.join_rules"):
        return event.state_key is not None
    if event.type != "m.room.member" or event.state_key is None:
        return False
    return event.content.get("membership") in ("leave", "ban") and event.sender != event.state_key
