"""Walking a tree of spaces depth first, page by page, as far as the tree is known.

Pure: who walks loads what is missing and walks again. A place is the path of keys of the children that lead to it, so
that a page goes on where the last one ended whatever was added or taken out meanwhile. Nothing is walked twice within
a page, nor in a circle.

Spec: C-S API §Spaces, GET /rooms/{roomId}/hierarchy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from matrixcore.identifiers import RoomId
from tessera.space_children import ChildKey, SpaceChild

Path = tuple[ChildKey, ...]


@dataclass(frozen=True, slots=True)
class SpaceNode:
    """A room in the tree: whether it is shown, and its children in order (those that count for this walk)."""

    is_shown: bool
    children: Sequence[SpaceChild] = ()


@dataclass(slots=True)
class Stretch:
    """What a walk came by: shown rooms with their places, and rooms of which nothing is known yet.

    Attributes:
        certain: how many of `shown` come before the first room that is missing.
        reached: the last place before that room, shown or not; None if there is none.
    """

    shown: list[tuple[Path, RoomId]] = field(default_factory=list)
    missing: list[RoomId] = field(default_factory=list)
    certain: int = 0
    reached: Path | None = None


def walk(
    nodes: Mapping[RoomId, SpaceNode],
    root: RoomId,
    after: Path | None,
    *,
    max_depth: int,
    limit: int,
    max_missing: int,
) -> Stretch:
    """The first `limit` shown rooms behind a place, or `max_missing` that are not known: these are taken for leaves.

    Args:
        after: the place of the last room of the page before; None for the first page, which begins with the root.
        max_depth: how many levels below the root are walked.
    """
    stretch = Stretch(reached=after)
    for path, room_id in _places(nodes, root, after, max_depth):
        node = nodes.get(room_id)
        if node is None:
            stretch.missing.append(room_id)
        elif node.is_shown:
            stretch.shown.append((path, room_id))
        if not stretch.missing:
            stretch.reached, stretch.certain = path, len(stretch.shown)
        if len(stretch.shown) >= limit or len(stretch.missing) >= max_missing:
            break
    return stretch


def _places(
    nodes: Mapping[RoomId, SpaceNode], root: RoomId, after: Path | None, max_depth: int
) -> Iterator[tuple[Path, RoomId]]:
    seen = {root}
    if after is None or root not in nodes:
        yield (), root
    yield from _below(nodes, root, (), after or (), max_depth, seen)


def _below(
    nodes: Mapping[RoomId, SpaceNode], room_id: RoomId, path: Path, rest: Path, max_depth: int, seen: set[RoomId]
) -> Iterator[tuple[Path, RoomId]]:
    """The places below one, those that are behind `path + rest`."""
    node = nodes.get(room_id)
    if node is None or not node.is_shown or len(path) >= max_depth:
        return
    for child in node.children:
        on_the_way = bool(rest) and child.key == rest[0]
        if (rest and child.key < rest[0]) or child.room_id in seen:
            continue
        seen.add(child.room_id)
        place = (*path, child.key)
        # A room on the way to where the last page ended was in that page, unless it has to be loaded to go through.
        if not on_the_way or child.room_id not in nodes:
            yield place, child.room_id
        yield from _below(nodes, child.room_id, place, rest[1:] if on_the_way else (), max_depth, seen)
