"""The children of a space in their order, as the hierarchy of spaces shows them.

Spec: C-S API §Spaces, "Ordering of children within a space"; GET /rooms/{roomId}/hierarchy here and between servers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import InvalidIdentifier, RoomId, parse_room_id
from tessera.storage.room_reads.space_children import ChildEvent

MAX_CHILDREN = 2_000  # of one space; more are not looked at
MAX_ORDER_LENGTH = 50
_ORDER = re.compile(r"[\x20-\x7e]+")


class ChildKey(NamedTuple):
    """Where a child stands among the children of its space: keys compare as the specification orders children."""

    unordered: bool
    order: str
    origin_server_ts: int
    room_id: RoomId


@dataclass(frozen=True, slots=True)
class SpaceChild:
    """A child of a space; `event` is its m.space.child event as stripped state with origin_server_ts."""

    key: ChildKey
    suggested: bool
    event: dict[str, Any]

    @property
    def room_id(self) -> RoomId:
        """The child."""
        return self.key.room_id

    @property
    def via(self) -> Sequence[str]:
        """Names of servers that may know the child, as its event has them: not checked."""
        via: Sequence[str] = self.event["content"]["via"]
        return via


def sort_children(events: Iterable[ChildEvent]) -> dict[RoomId, Sequence[SpaceChild]]:
    """The children of each space, in order. What has no valid `via`, or is no room, is no child."""
    by_space: dict[RoomId, list[SpaceChild]] = {}
    for event in events:
        if (child := _child_of(event)) is not None:
            by_space.setdefault(event.room_id, []).append(child)
    return {space: sorted(children, key=lambda child: child.key) for space, children in by_space.items()}


def valid_order(value: object) -> str | None:
    """An `order` that counts, else None."""
    if isinstance(value, str) and len(value) <= MAX_ORDER_LENGTH and _ORDER.fullmatch(value):
        return value
    return None


def child_of(state_key: object, sender: str, origin_server_ts: int, content: Mapping[str, Any]) -> SpaceChild | None:
    """The child that an m.space.child event makes; None if it makes none."""
    via = content.get("via")
    if not isinstance(via, list) or not via or not all(isinstance(name, str) for name in via):
        return None
    try:
        room_id = parse_room_id(state_key)
    except InvalidIdentifier:
        return None
    order = valid_order(content.get("order"))
    stripped = {
        "type": "m.space.child",
        "state_key": room_id,
        "content": content,
        "sender": sender,
        "origin_server_ts": origin_server_ts,
    }
    key = ChildKey(order is None, order or "", origin_server_ts, room_id)
    return SpaceChild(key, content.get("suggested") is True, stripped)


def _child_of(event: ChildEvent) -> SpaceChild | None:
    return child_of(event.state_key, event.sender, event.origin_server_ts, orjson.loads(event.pdu)["content"])
