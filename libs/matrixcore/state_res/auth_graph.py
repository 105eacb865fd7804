"""The graph of auth_events, as integers: chains, their difference, and the conflicted subgraph.

Chains of large rooms have tens of thousands of events and may be as deep. So every walk is a
loop over integers and byte marks, and none recurses. Events of room versions 1 and 2 choose
their IDs, so the graph may have cycles; every walk ends all the same.

Spec: Room Version 2 and 12 §State resolution, "Definitions".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from matrixcore.auth_events import POWER_LEVELS
from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId
from matrixcore.room_versions import RoomVersionRules

Node = int


@dataclass(frozen=True, slots=True)
class AuthEdges:
    """What the walks need of an event; a row of the event table without its body."""

    event_id: EventId
    auth_events: Sequence[EventId]
    is_power_levels: bool  # type m.room.power_levels with the empty state key

    @classmethod
    def of(cls, event: Event) -> "AuthEdges":
        return cls(event.event_id, event.auth_events, (event.type, event.state_key) == POWER_LEVELS)

    @classmethod
    def read(cls, event_id: EventId, pdu: bytes, rules: RoomVersionRules) -> "AuthEdges":
        """The edges of bytes that were stored; where that is enough, without making an event of them."""
        if not rules.strict_canonical_json:
            return cls.of(load_event(pdu, event_id, rules))
        fields = orjson.loads(pdu)
        return cls(event_id, fields["auth_events"], (fields["type"], fields.get("state_key")) == POWER_LEVELS)


class AuthGraph:
    """A growing part of a room's auth DAG. Edges go from an event to the events it cites."""

    def __init__(self) -> None:
        self._nodes: dict[EventId, Node] = {}
        self._ids: list[EventId] = []
        self._edges: list[tuple[Node, ...] | None] = []
        self._shared: dict[tuple[Node, ...], tuple[Node, ...]] = {}  # most events cite what others cite
        self._is_power_levels: list[bool] = []
        self._missing: dict[Node, None] = {}  # in the order of their first mention

    def __len__(self) -> int:
        return len(self._ids)

    def node(self, event_id: EventId) -> Node:
        """The event's node; an event not seen before becomes missing."""
        node = self._nodes.get(event_id)
        if node is None:
            node = self._nodes[event_id] = len(self._ids)
            self._ids.append(event_id)
            self._edges.append(None)
            self._is_power_levels.append(False)
            self._missing[node] = None
        return node

    def event_id(self, node: Node) -> EventId:
        return self._ids[node]

    def event_ids(self, nodes: Iterable[Node]) -> list[EventId]:
        return [self._ids[node] for node in nodes]

    def missing(self) -> list[EventId]:
        """The events whose edges are needed and not here yet."""
        return [self._ids[node] for node in self._missing]

    def add(self, edges: AuthEdges) -> None:
        """Take in an event's edges; what it cites becomes missing unless it is here."""
        node = self.node(edges.event_id)
        if self._edges[node] is None:
            nodes = self._nodes
            cited_nodes = tuple([nodes[cited] if cited in nodes else self.node(cited) for cited in edges.auth_events])
            self._edges[node] = self._shared.setdefault(cited_nodes, cited_nodes)
            self._is_power_levels[node] = edges.is_power_levels
            del self._missing[node]

    def cited_by(self, node: Node) -> tuple[Node, ...]:
        """The nodes of the event's auth_events; empty for an event that is missing."""
        return self._edges[node] or ()

    def power_levels_of(self, node: Node) -> Node | None:
        """The m.room.power_levels event among the event's auth_events."""
        return next((cited for cited in self.cited_by(node) if self._is_power_levels[cited]), None)

    def is_power_levels(self, node: Node) -> bool:
        return self._is_power_levels[node]

    def chain(self, roots: Iterable[Node]) -> list[Node]:
        """The union of the auth chains of the roots; a root is in it only if another root's chain has it."""
        edges = self._edges
        marks = bytearray(len(self._ids))
        reached: list[Node] = []
        stack: list[Node] = [cited for root in roots for cited in edges[root] or ()]
        while stack:
            node = stack.pop()
            if not marks[node]:
                marks[node] = 1
                reached.append(node)
                stack.extend(edges[node] or ())
        return reached

    def difference_of_chains(self, groups: Sequence[Iterable[Node]]) -> set[Node]:
        """What is in the chain of some group, but not in those of all."""
        counts: dict[Node, int] = {}
        for group in groups:
            for node in self.chain(group):
                counts[node] = counts.get(node, 0) + 1
        return {node for node, count in counts.items() if count < len(groups)}

    def subgraph_between(self, ends: Iterable[Node]) -> set[Node]:
        """All nodes on paths from one of the ends to another, the ends included.

        Spec: Room Version 12 §State resolution, "Conflicted state subgraph".
        """
        ends = list(ends)
        below = set(ends)
        below.update(self.chain(ends))
        citing: dict[Node, list[Node]] = {}
        for node in below:
            for cited in self.cited_by(node):
                citing.setdefault(cited, []).append(node)
        between = set(ends)
        stack = ends
        while stack:
            for node in citing.get(stack.pop(), ()):
                if node not in between:
                    between.add(node)
                    stack.append(node)
        return between
