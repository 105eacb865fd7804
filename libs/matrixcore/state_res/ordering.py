"""The two orders in which state resolution v2 replays events.

Spec: Room Version 2 §State resolution, "Reverse topological power ordering", "Mainline ordering".
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping

from matrixcore.auth_events import CREATE, POWER_LEVELS
from matrixcore.events import Event
from matrixcore.identifiers import EventId
from matrixcore.power_levels import PowerLevels
from matrixcore.state_res.auth_graph import AuthGraph, Node


class SenderPower:
    """The power of events' senders by what the events cite; each pair of levels and creation is read once."""

    def __init__(self, events: Mapping[EventId, Event], create: Event | None) -> None:
        self._events = events
        self._create = create
        self._levels: dict[tuple[EventId | None, EventId], PowerLevels] = {}

    def of(self, event: Event) -> int:
        """The level of the event's sender; 0 for an event that leads to no create event."""
        power_levels, create = None, self._create
        for event_id in event.auth_events:
            cited = self._events.get(event_id)
            if cited is None:
                continue
            if (cited.type, cited.state_key) == POWER_LEVELS:
                power_levels = cited
            elif (cited.type, cited.state_key) == CREATE:
                create = cited
        if create is None:
            return 0
        key = (None if power_levels is None else power_levels.event_id, create.event_id)
        levels = self._levels.get(key)
        if levels is None:
            levels = self._levels[key] = PowerLevels.of(power_levels, create)
        return levels.user_level(event.sender)


def reverse_topological_power_order(
    graph: AuthGraph, chosen: Collection[Node], event_of: Callable[[Node], Event], power: SenderPower
) -> list[Node]:
    """The chosen nodes, cited ones first, ties by sender's power, then time, then event ID.

    Kahn's algorithm over the chosen events and their whole auth chains: what is not chosen
    only passes the order on between chosen events that cite each other through it. Events in a
    cycle of auth_events, which nothing can authorise, are left out.
    """
    chosen = frozenset(chosen)
    open_edges: dict[Node, int] = {}
    citing: dict[Node, list[Node]] = {}
    for node in chosen.union(graph.chain(chosen)):
        cited_nodes = graph.cited_by(node)
        open_edges[node] = len(cited_nodes)
        for cited in cited_nodes:
            citing.setdefault(cited, []).append(node)

    candidates: list[tuple[int, int, EventId, Node]] = []
    passing: list[Node] = []

    def release(node: Node) -> None:
        if node in chosen:
            event = event_of(node)
            heapq.heappush(candidates, (-power.of(event), event.origin_server_ts, event.event_id, node))
        else:
            passing.append(node)

    for node, count in open_edges.items():
        if count == 0:
            release(node)
    ordered: list[Node] = []
    while passing or candidates:
        if passing:
            node = passing.pop()
        else:
            node = heapq.heappop(candidates)[3]
            ordered.append(node)
        for above in citing.get(node, ()):
            open_edges[above] -= 1
            if open_edges[above] == 0:
                release(above)
    return ordered


def mainline_order(
    graph: AuthGraph, nodes: Iterable[Node], event_of: Callable[[Node], Event], resolved_power_levels: Node | None
) -> list[Node]:
    """The nodes by the place of their power levels in the mainline (oldest first), then time, then event ID.

    Events that lead to no place of the mainline come first.
    """
    positions = _mainline_positions(graph, resolved_power_levels)
    ranks: dict[Node, int] = {}
    keys: dict[Node, tuple[int, int, EventId]] = {}
    off_mainline = -len(positions) - 1  # sorts before the far end of the mainline
    for node in nodes:
        event = event_of(node)
        position = _position(graph, graph.power_levels_of(node), positions, ranks)
        keys[node] = (off_mainline if position is None else -position, event.origin_server_ts, event.event_id)
    return sorted(keys, key=keys.__getitem__)


def _mainline_positions(graph: AuthGraph, start: Node | None) -> dict[Node, int]:
    positions: dict[Node, int] = {}
    while start is not None and start not in positions:
        positions[start] = len(positions)
        start = graph.power_levels_of(start)
    return positions


_NOWHERE = -1


def _position(
    graph: AuthGraph, power_levels: Node | None, positions: Mapping[Node, int], ranks: dict[Node, int]
) -> int | None:
    """The mainline position of an event that cites these power levels; `ranks` remembers the ways walked."""
    path: dict[Node, None] = {}
    node = power_levels
    rank = _NOWHERE
    while node is not None and node not in path:
        known = positions.get(node, ranks.get(node))
        if known is not None:
            rank = known
            break
        path[node] = None
        node = graph.power_levels_of(node)
    for walked in path:
        ranks[walked] = rank
    return None if rank == _NOWHERE else rank
